import io
import json

import pytest
from rich.cells import cell_len
from rich.console import Console

from archsearch.study import Study, StudyLog
from archsearch.ui.dashboard import render

from .fakes import LAYOUTS, FakeRun, header, run_trials

SIZES = [(80, 24), (100, 30), (127, 40), (128, 35), (200, 60), (60, 18), (40, 10), (250, 12)]


def screen(study, width, height, said=(), colour=False):
    """The frame as a terminal of exactly this size would hold it."""
    stream = io.StringIO()
    system = "truecolor" if colour else None
    console = Console(file=stream, width=width, height=height, color_system=system, force_terminal=colour)
    console.print(render(study, width, height, said))
    return stream.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("kind", ["live", "finished", "empty"])
def test_a_frame_fits_its_terminal_exactly(request, kind, width, height):
    made = request.getfixturevalue(kind)
    lines = screen(Study.read(getattr(made, "run_dir", made)), width, height)
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(("width", "height"), [(20, 5), (39, 24), (80, 3), (1, 1)])
def test_a_terminal_too_small_is_not_overrun(study, width, height):
    lines = screen(study, width, height)
    assert len(lines) == height
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_running_trials_and_the_front_come_first(study, width, height):
    lines = screen(study, width, height)
    rows = [line for line in lines if line[:1] == "│" and line[2:3] in "▸★✓✗⊘="]
    marks = [row[2] for row in rows]
    assert [row[4:8] for row in rows[:2]] == ["0018", "0019"]
    assert "65%" in rows[0]
    assert "20%" in rows[1]
    front = [trial.id for trial in study.front()]
    assert [row[4:8] for row in rows if row[2] == "★"] == front
    assert marks[: 2 + len(front)] == ["▸", "▸", *"★" * len(front)]


def test_the_head_tells_how_the_study_stands(study):
    head = "\n".join(screen(study, 100, 30)[:3])
    best = study.best("recall")
    for words in (
        "recall-vs-perplexity",
        "running",
        "elapsed",
        "ETA",
        "18/24 trials",
        "2 running",
        "2 failed",
    ):
        assert words in head
    assert f"best recall ↑ {best.values['recall']:.3f}" in head
    assert f"front {len(study.front())}" in head
    assert f"hypervolume {study.hypervolume():.1f}" in head


def test_causes_are_shown(study):
    shown = "\n".join(screen(study, 200, 60))
    assert "out of memory" in shown
    assert "non-finite loss at step 120" in shown
    assert "breaks params <= 150k by 16%" in shown
    assert "same as 0002" in shown


def test_what_does_not_fit_is_counted(study):
    shown = "\n".join(screen(study, 80, 24))
    assert "… 12 more: 8 complete, 1 duplicate, 2 failed, 1 infeasible" in shown


def test_numbers_carry_units(study):
    trial = study.trials["0004"]
    shown = "\n".join(screen(study, 200, 60))
    assert f"{trial.cost['params'] / 1000:.0f}k" in shown
    assert f"{trial.cost['state_bytes'] // 1024} KiB" in shown


def test_the_scatter_has_axes_and_every_front_member(study):
    right = [line[130:] for line in screen(study, 200, 60)]
    shown = "\n".join(right)
    assert "recall ↑" in shown
    assert "perplexity ↓" in shown
    for trial in study.front():
        assert f"★{int(trial.id)}" in shown
    others = len(study.complete) - len(study.front())
    drawn = sum(line.count("●") for line in right[1:] if "★ front" not in line)
    assert others - 2 <= drawn <= others


def test_the_same_model_gives_the_same_frame(study):
    assert screen(study, 100, 30, colour=True) == screen(study, 100, 30, colour=True)


def test_said_lines_join_the_log(study):
    shown = "\n".join(screen(study, 100, 30, said=[(study.now, "a stray [bold]line[/bold]")]))
    assert "a stray [bold]line[/bold]" in shown


def test_a_hostile_message_cannot_drive_the_terminal(tmp_path):
    with StudyLog(tmp_path) as log:
        log.append(header(1, name="\x1b]0;owned\x07\x1b[2J[red]名前"))
        log.trial(
            "\x1b[31m1", "failed", cause={"kind": "\x1b[2J", "message": "a\nb\tc\u202e"}, layout=LAYOUTS[0]
        )
        lines = screen(Study.read(tmp_path), 80, 24)
    assert "\x1b" not in "".join(lines)
    assert "\u202e" not in "".join(lines)
    assert {cell_len(line) for line in lines} == {80}
    assert "[red]名前" in lines[0]


@pytest.mark.parametrize("count", [1, 3, 6])
def test_any_number_of_objectives(tmp_path, count):
    names = ["recall", "perplexity", "state_bytes", "throughput", "a", "b"][:count]
    with StudyLog(tmp_path) as log:
        log.append(header(3, objectives=dict.fromkeys(names, "minimize"), reference={}))
        for number in range(3):
            log.trial(
                str(number), "complete", layout=LAYOUTS[number], values={n: 1.0 + number for n in names}
            )
        log.trial("9", "running", layout=LAYOUTS[0])
        for width, height in SIZES:
            lines = screen(Study.read(tmp_path), width, height)
            assert {cell_len(line) for line in lines} == {width}
            assert len(lines) == height
        wide = "\n".join(screen(Study.read(tmp_path), 200, 60))
    assert all(f"{name} ↓" in wide for name in names)
    assert "hypervolume against worst seen" in wide


def test_an_outlier_does_not_squeeze_the_front(tmp_path):
    with StudyLog(tmp_path) as log:
        log.append(header(30))
        for number in range(30):
            values = {"recall": number / 40, "perplexity": 5 + number / 20}
            log.trial(f"{number:02d}", "complete", layout=LAYOUTS[0], values=values)
        log.trial("99", "complete", layout=LAYOUTS[0], values={"recall": 0.01, "perplexity": 90_000.0})
        right = "\n".join(line[132:] for line in screen(Study.read(tmp_path), 200, 60))
    assert "1 beyond the edge" in right
    assert "5.5" in right


def test_a_thousand_trials_render(tmp_path):
    run = FakeRun(tmp_path, trials=1200)
    run.log.close()
    lines = []
    for number in range(1000):
        candidate = run.candidate(number)
        event = {"event": "trial", "trial": f"{number:04d}", "state": "complete", "time": run.clock + number}
        event |= {**candidate, "values": run.scores(candidate), "seconds": 30.0}
        lines.append(json.dumps(event) + "\n")
    with (tmp_path / "study.jsonl").open("a") as file:
        file.writelines(lines)
    study = Study.read(tmp_path)
    shown = screen(study, 200, 60)
    assert len(shown) == 60
    assert "1000/1200 trials" in "\n".join(shown)


def test_a_killed_run_shows_its_trials_as_unfinished(tmp_path):
    run = FakeRun(tmp_path)
    run_trials(run, range(3))
    run.begin("0003", run.candidate(3))
    run.train("0003", 0.5)
    run.close()
    lines = screen(Study.read(tmp_path), 100, 30)
    assert "interrupted" in lines[0]
    assert "1 unfinished" in lines[1]
    assert any(line.startswith("│ ‖ 0003") and "50%" in line for line in lines)
