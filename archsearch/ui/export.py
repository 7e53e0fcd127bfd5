"""All trials as flat tables: `trials.csv` for people and spreadsheets, `trials.parquet` for programs.

One row a trial, in order of appearance. Groups are flattened with their name before a dot:
`params.training.lr`, `mixture.code`, `cost.state_bytes` (bytes), `values.recall`, `metrics.…`,
`constraints.…` (violation, > 0).
"""

import csv
import json
from pathlib import Path
from typing import Any

from archsearch.study import Study, Trial

_GROUPS = ("params", "mixture", "cost", "values", "metrics", "constraints")


def rows(study: Study) -> tuple[list[str], list[dict[str, Any]]]:
    """Column names, and a mapping from them a trial; a trial leaves out what it does not have."""
    front = {trial.id for trial in study.front()}
    table = [_row(trial, trial.id in front) for trial in study.trials.values()]
    columns = ["id", "state", "front", "cause", "of", "hash", "seconds", "started", "ended", "layout"]
    for group in _GROUPS:
        columns += dict.fromkeys(name for row in table for name in row if name.startswith(f"{group}."))
    return columns, table


def write_csv(study: Study, path: Path) -> None:
    """Write `path` in UTF-8 with a header line; what a trial does not have is empty."""
    columns, table = rows(study)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(table)


def write_parquet(study: Study, path: Path) -> None:
    """Write `path`; numbers stay numbers, a column of mixed kinds becomes text, what is missing is null."""
    import pyarrow
    import pyarrow.parquet

    columns, table = rows(study)
    arrays = {name: _uniform([row.get(name) for row in table]) for name in columns}
    pyarrow.parquet.write_table(pyarrow.table(arrays), path)


def _row(trial: Trial, on_front: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": trial.id,
        "state": trial.state,
        "front": on_front,
        "hash": trial.hash,
        "started": trial.started,
        "layout": json.dumps(trial.layout, ensure_ascii=False),
    }
    if trial.cause is not None:
        row["cause"] = json.dumps(trial.cause, ensure_ascii=False)
    for name in ("of", "seconds", "ended"):
        if getattr(trial, name) is not None:
            row[name] = getattr(trial, name)
    for group in _GROUPS:
        for name, entry in getattr(trial, group).items():
            if entry is not None:
                row[f"{group}.{name}"] = entry if isinstance(entry, str | int | float) else json.dumps(entry)
    return row


def _uniform(column: list[Any]) -> list[Any]:
    kinds = {type(entry) for entry in column if entry is not None}
    if len(kinds) <= 1:
        return column
    if kinds <= {int, float}:
        return [None if entry is None else float(entry) for entry in column]
    return [None if entry is None else str(entry) for entry in column]
