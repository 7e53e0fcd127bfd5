"""Promotion: which points, trained how, continued how, and what is said of them."""

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from archsearch.experiment import load_experiment
from archsearch.search.driver import run_sweep
from archsearch.search.promote import Plan, Request, plan_promotion, read_plan, spread, write_results
from archsearch.search.space import load_space
from archsearch.search.sweep import Sweep
from archsearch.study import Study, StudyError
from archsearch.ui.promotion import print_promotion
from archsearch.ui.report import write_report

SPACES = Path(__file__).parent / "spaces"
TINY = 8192


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four trials, three of them on the front."""
    run = tmp_path_factory.mktemp("promote") / "run"
    sweep = Sweep(load_space(SPACES / "tiny.yaml"), run)
    points = iter([(0.9, 9.0), (0.2, 4.0), (0.1, 5.0), (0.5, 6.0)])
    while sweep.has_work:
        trial = sweep.next()
        if trial is not None:
            recall, perplexity = next(points)
            sweep.complete(trial, {"recall": recall, "perplexity": perplexity}, 1.0)
    sweep.write_front()
    sweep.close()
    return run


def asked(source: Path, **changes: Any) -> Request:
    return Request(**({"run": str(source), "top": 5, "seeds": 3} | changes))


def pretend(plan: Plan, out: Path, at_most: int = 100) -> list[str]:
    """Trains nothing: a point's perplexity is its place, its recall the reverse, with the seed's noise."""
    sweep = Sweep(plan.space(), out)
    trained = []
    while sweep.has_work and len(trained) < at_most:
        trial = sweep.next()
        assert trial is not None
        params = sweep.known[trial].candidate.params
        place, noise = list(plan.points).index(params["point"]), (params["seed"] % 7) / 100
        metrics = {"recall": 0.9 - 0.2 * place + noise, "perplexity": 9.0 - place + noise + place * noise / 9}
        sweep.complete(trial, metrics, 1.0)
        trained.append(trial)
    sweep.close()
    return trained


def test_the_front_is_trained_with_new_seeds_on_the_test_split(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_promotion(asked(source, tokens=2 * TINY), out)
    assert set(plan.points) == {trial.id for trial in Study.read(source).front()}
    assert len(pretend(plan, out)) == 9
    study = Study.read(out)
    assert study.header.sampler == "promotion"
    assert study.header.objectives == Study.read(source).header.objectives
    for trial in study.trials.values():
        experiment = load_experiment(out / "trials" / trial.id / "spec.yaml")
        searched = load_experiment(source / "trials" / trial.params["point"] / "spec.yaml")
        assert experiment.arch.hash == searched.arch.hash
        assert experiment.data == searched.data
        assert experiment.evaluation.split == "test"
        assert experiment.training.tokens == 2 * TINY
        assert experiment.training.seed == trial.params["seed"] >= 1000
        assert experiment.training.lr == searched.training.lr
        assert experiment.hash == trial.hash
    assert len({trial.hash for trial in study.trials.values()}) == 9


def test_larger_models(source: Path, tmp_path: Path) -> None:
    plan = plan_promotion(asked(source, width=2, depth=2, top=1), tmp_path / "out")
    (point,) = plan.points
    small = load_experiment(source / "trials" / point / "spec.yaml").arch
    assert plan.points[point].experiment.arch.d_model == 2 * small.d_model
    assert len(plan.points[point].experiment.arch.nodes) == 2 * len(small.nodes)


def test_baselines_are_trials_or_files(source: Path, tmp_path: Path) -> None:
    other = next(t.id for t in Study.read(source).complete if not Study.read(source).on_front(t))
    file = tmp_path / "plain.yaml"
    file.write_text("tokenizer: bytes\nd_model: 16\nlayers: [mlp]\n")
    plan = plan_promotion(asked(source, top=1, baselines=(other, str(file))), tmp_path / "out")
    assert [point.baseline for point in plan.points.values()] == [False, True, True]
    chosen, from_run, from_file = plan.points.values()
    assert from_run.searched == Study.read(source).trials[other].values
    assert from_file.searched == {}
    assert from_file.experiment.arch.d_model == 16
    # A bare layout is trained and scored as the first point is.
    assert from_file.experiment.data == chosen.experiment.data
    assert from_file.experiment.training == chosen.experiment.training
    assert from_file.experiment.evaluation == chosen.experiment.evaluation
    with pytest.raises(ValueError, match="neither a trial of the run nor a file"):
        plan_promotion(asked(source, baselines=("9999",)), tmp_path / "out")


def test_an_interrupted_promotion_goes_on_as_it_began(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(source, copy)
    out = tmp_path / "out"
    request = asked(copy, seeds=2)
    first = pretend(plan_promotion(request, out), out, at_most=2)
    # Whatever becomes of the run that it came from.
    shutil.rmtree(copy)
    plan = plan_promotion(request, out)
    assert plan == read_plan(out)
    second = pretend(plan, out)
    assert first + second == ["0000", "0001", "0002", "0003", "0004", "0005"]
    assert pretend(plan_promotion(request, out), out) == []
    # More seeds come after those that are there.
    more = pretend(plan_promotion(asked(copy, seeds=3), out), out)
    assert more == ["0006", "0007", "0008"]
    trials = Study.read(out).trials
    assert {trials[name].params["seed"] for name in more} == {1002}


def test_another_promotion_is_refused_with_what_differs(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pretend(plan_promotion(asked(source), out), out, at_most=1)
    with pytest.raises(StudyError, match=r"width: 1 -> 2; give --out"):
        plan_promotion(asked(source, width=2), out)
    with pytest.raises(StudyError, match=r"seeds: 3 -> 2"):
        plan_promotion(asked(source, seeds=2), out)
    with pytest.raises(StudyError, match="holds no promotion"):
        plan_promotion(asked(source), source)
    with pytest.raises(StudyError, match="is a promotion itself"):
        plan_promotion(asked(out), tmp_path / "other")
    with pytest.raises(ValueError, match=r"training\.tokens: must be at most"):
        plan_promotion(asked(source, tokens=10**30), tmp_path / "other")


def test_a_run_without_a_front_is_refused(tmp_path: Path) -> None:
    Sweep(load_space(SPACES / "tiny.yaml"), tmp_path / "run").close()
    with pytest.raises(StudyError, match="no front to promote"):
        plan_promotion(asked(tmp_path / "run"), tmp_path / "out")


def test_points_are_the_extremes_and_then_the_farthest() -> None:
    points = [(0.0, 1.0), (0.1, 1.1), (0.5, 3.0), (0.9, 8.0), (1.0, 9.0)]
    directions = ["maximize", "minimize"]
    assert spread(points, directions, 2) == [4, 0]
    assert spread(points, directions, 3) == [4, 0, 2]
    assert spread(points, directions, 1) == [4]
    assert sorted(spread(points, directions, 9)) == [0, 1, 2, 3, 4]
    assert spread([(1.0, 2.0)] * 3, directions, 3) == [0, 1, 2]
    assert spread([(3.0,), (1.0,)], ["minimize"], 1) == [1]


def test_results_say_what_is_real(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_promotion(asked(source, seeds=4), out)
    pretend(plan, out)
    found = write_results(plan, out)
    assert json.loads((out / "promotion.json").read_text()) == found
    by_point = {point["point"]: point["values"]["perplexity"] for point in found["points"]}
    first = next(iter(by_point))
    assert by_point[first]["mean"] == pytest.approx(9.0225)
    assert by_point[first]["low"] < by_point[first]["mean"] < by_point[first]["high"]
    assert by_point[first]["searched"] == Study.read(source).trials[first].values["perplexity"]
    assert len(found["differences"]) == 6
    for one in found["differences"]:
        assert one["test"] == "paired"
        assert one["real"]
        assert one["p_holm"] >= one["p"]
    # Recall was ranked as it ranks now or not: three points, so rho is one of four values.
    assert found["rank_correlation"]["perplexity"]["rho"] in (-1, -0.5, 0.5, 1)
    assert found["rank_correlation"]["perplexity"]["n"] == 3
    assert found["rank_correlation"]["perplexity"]["p"] >= 1 / 3
    for width in (80, 200):
        text = io.StringIO()
        print_promotion(found, Console(file=text, width=width, force_terminal=width == 80))
        assert "…" not in text.getvalue()
        assert all(f"{one['a']} − {one['b']}" in text.getvalue() for one in found["differences"])
    write_report(out)
    page = (out / "report.html").read_text()
    assert "Promotion" in page
    assert "Holm" in page
    assert "Promotion" not in _page(source, tmp_path / "plain")


@pytest.mark.filterwarnings("ignore:Precision loss")  # one objective's differences are all alike
def test_results_are_what_scipy_makes_of_the_record(source: Path, tmp_path: Path) -> None:
    stats = pytest.importorskip("scipy.stats")
    out = tmp_path / "out"
    plan = plan_promotion(asked(source, seeds=5), out)
    pretend(plan, out)
    found = write_results(plan, out)
    values: dict[str, dict[str, list[float]]] = {}
    for trial in Study.read(out).trials.values():
        for name, value in trial.values.items():
            values.setdefault(name, {}).setdefault(trial.params["point"], []).append(float(value or 0))
    for point in found["points"]:
        for name, told in point["values"].items():
            sample = values[name][point["point"]]
            low, high = stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))
            assert (told["low"], told["high"]) == (pytest.approx(low), pytest.approx(high))
    tests = []
    for one in found["differences"]:
        of = values[one["objective"]]
        tests.append(stats.ttest_rel(of[one["a"]], of[one["b"]]))
        low, high = tests[-1].confidence_interval(0.95)
        assert (one["low"], one["high"]) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
        assert one["p"] == pytest.approx(tests[-1].pvalue, abs=1e-12)
    # Holm: the k-th smallest of m times m - k, never below the one before.
    order = np.argsort([test.pvalue for test in tests])
    least = 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(tests) - place) * tests[index].pvalue))
        assert found["differences"][index]["p_holm"] == pytest.approx(least, abs=1e-12)
    for name, told in found["rank_correlation"].items():
        searched = [point["values"][name]["searched"] for point in found["points"]]
        now = [point["values"][name]["mean"] for point in found["points"]]
        assert told["rho"] == pytest.approx(stats.spearmanr(searched, now).statistic)


def _page(run: Path, out: Path) -> str:
    return write_report(run, out).html.read_text()


def test_one_seed_gives_means_without_intervals(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_promotion(asked(source, seeds=1, top=2), out)
    pretend(plan, out)
    found = write_results(plan, out)
    assert all(one["p"] is None and not one["real"] for one in found["differences"])
    assert all(point["values"]["recall"]["low"] is None for point in found["points"])
    print_promotion(found)


@pytest.mark.slow
def test_killed_and_started_again_with_real_training(tmp_path: Path) -> None:
    """The whole way by the command line: a sweep, a promotion killed half-way, the same command again."""
    run, out = tmp_path / "run", tmp_path / "out"
    run_sweep(load_space(SPACES / "tiny.yaml"), run, trials=2)
    command = [sys.executable, "-m", "archsearch", "promote", str(run), "--top", "2", "--seeds", "2"]
    command += ["--scale", "width=2,depth=2", "--out", str(out), "--no-dashboard"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while '"complete"' not in (text := _record(out)) and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.kill()
    process.wait()
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, timeout=200)
    assert _record(out).startswith(text[: text.rfind("\n")])
    found = json.loads(again.stdout.splitlines()[-1])
    study = Study.read(out)
    assert study.counts() == {"complete": 2 * len(found["points"])}
    assert all(value["n"] == 2 for point in found["points"] for value in point["values"].values())


def _record(out: Path) -> str:
    path = out / "study.jsonl"
    return path.read_text() if path.exists() else ""
