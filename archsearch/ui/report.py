"""The report of a run: tables, the front's picture, and a page that shows them."""

import os
from dataclasses import dataclass
from pathlib import Path

from archsearch.study import Study
from archsearch.ui.export import write_csv, write_parquet
from archsearch.ui.html import page
from archsearch.ui.plots import write_front


@dataclass(frozen=True)
class Report:
    """The files that a report consists of."""

    csv: Path
    parquet: Path
    png: Path
    html: Path


def write_report(run_dir: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Report:
    """Write `trials.csv`, `trials.parquet`, `front.png` and `report.html` of a run, live or ended.

    They go into the run's folder, or into `out`, which is made where it is missing. Each file appears whole.

    Raises:
        StudyError: the folder is no run, or its record is damaged.
        OSError: the files cannot be written.
    """
    study = Study.read(run_dir)
    study.read_curves()
    folder = Path(out) if out is not None else study.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(
        folder / "trials.csv", folder / "trials.parquet", folder / "front.png", folder / "report.html"
    )
    for path, write in ((report.csv, write_csv), (report.parquet, write_parquet), (report.png, write_front)):
        # The suffix stays last: matplotlib chooses its format by it.
        draft = path.with_name(f".draft-{os.getpid()}-{path.name}")
        write(study, draft)
        draft.replace(path)
    draft = report.html.with_name(f".draft-{os.getpid()}-{report.html.name}")
    draft.write_text(page(study, folder), encoding="utf-8")
    draft.replace(report.html)
    return report
