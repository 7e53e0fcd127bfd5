"""Halving: who goes on, over the whole front; and that rungs live in the record."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.search.halving import Halving, fronts, priority, ranks
from archsearch.search.settings import HalvingSpec, SearchSpec
from archsearch.search.space import SearchSpace, load_space
from archsearch.search.sweep import Sweep
from archsearch.spec import SpecError
from archsearch.study import Study

SPACES = Path(__file__).parent / "spaces"
BOTH = {"recall": "maximize", "perplexity": "minimize"}
POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30)


def test_rungs_unless_the_space_says_otherwise() -> None:
    assert SearchSpec().halving == SearchSpec(scheduler="halving").halving == HalvingSpec()
    assert SearchSpec(scheduler="none").halving is None


@given(POINTS)
def test_ranks_invert_the_order(points: list[tuple[int, int]]) -> None:
    costs_nd = np.array(points, dtype=float)
    order, places = priority(costs_nd), ranks(costs_nd)
    assert sorted(order.tolist()) == list(range(len(points)))
    assert [places[i] for i in order] == list(range(len(points)))


@given(POINTS)
def test_fronts_come_one_after_the_other(points: list[tuple[int, int]]) -> None:
    """Nobody is ranked before a trial that dominates it, whatever the order of arrival."""
    costs_nd = np.array(points, dtype=float)
    places = ranks(costs_nd)
    for i, a in enumerate(costs_nd):
        for j, b in enumerate(costs_nd):
            if (a <= b).all() and (a < b).any():
                assert places[i] < places[j]
    assert sum(len(front) for front in fronts(costs_nd)) == len(points)


def test_a_front_is_covered_from_its_beginning() -> None:
    """The balanced point first, then the ends: not the neighbours of those already there."""
    line = np.array([[x, 10.0 - x] for x in range(11)])
    line[4] -= 0.5
    assert priority(line)[:3].tolist() in ([4, 10, 0], [4, 0, 10])


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_who_dominates_all_goes_on_and_who_is_dominated_by_all_does_not(seed: int, eta: int) -> None:
    """Whatever stands on the rung, unsorted; the permutation must be inverted for this to hold."""
    rng = np.random.default_rng(seed)
    halving = Halving(HalvingSpec(eta=eta), BOTH)
    for i in range(int(rng.integers(2 * eta - 1, 20))):
        halving.record(str(i), 0, [float(rng.random()), float(1 + rng.random())])
    assert halving.decide("new", 0, [2.0, 0.5]) == "continue"
    assert halving.decide("new", 0, [-1.0, 5.0]) == "stop"


def test_the_first_at_a_rung_pass() -> None:
    halving = Halving(HalvingSpec(eta=3), BOTH)
    for i in range(5):
        assert halving.decide(str(i), 0, [0.0, 9.0 + i]) == "continue"
        halving.record(str(i), 0, [0.0, 9.0 + i])
    assert halving.decide("last", 0, [0.0, 20.0]) == "stop"


def test_one_objective_alone() -> None:
    halving = Halving(HalvingSpec(eta=2, by="perplexity"), BOTH)
    for i, (recall, perplexity) in enumerate([(0.9, 8.0), (0.1, 5.0), (0.5, 7.0)]):
        halving.record(str(i), 0, [recall, perplexity])
    assert halving.decide("x", 0, [0.0, 6.0]) == "continue"
    assert halving.decide("x", 0, [1.0, 7.5]) == "stop"


def test_promotion_takes_the_best_of_the_highest_rung() -> None:
    halving = Halving(HalvingSpec(type="promotion", eta=2, start=0.25), BOTH)
    assert halving.shares == [0.25, 0.5]
    assert halving.decide("a", 0, [0.5, 5.0]) == "pause"
    halving.record("a", 0, [0.5, 5.0])
    assert halving.promotable() is None
    halving.record("b", 0, [0.6, 4.0])
    assert halving.promotable() == ("b", 0)
    halving.promote("b", 0)
    assert halving.promotable() is None
    assert halving.promotable(last=True) is None
    halving.record("b", 1, [0.7, 3.0])
    assert halving.promotable() is None
    assert halving.promotable(last=True) == ("b", 1)
    for name, values in (("c", [0.1, 9.0]), ("d", [0.9, 2.0])):
        halving.record(name, 0, values)
    assert halving.promotable() == ("d", 0)
    halving.promote("d", 0)
    halving.record("d", 1, [0.9, 1.0])
    assert halving.promotable() == ("d", 1)


@pytest.mark.parametrize(
    ("eta", "start", "shares"), [(3, 1 / 9, [1 / 9, 1 / 3]), (4, 0.1, [0.1, 0.4]), (2, 0.5, [0.5])]
)
def test_rungs(eta: int, start: float, shares: list[float]) -> None:
    assert HalvingSpec(eta=eta, start=start).shares == pytest.approx(shares)


def space_with(scheduler: str, tmp_path: Path, more: str = "") -> SearchSpace:
    text = (SPACES / "hybrid.yaml").read_text()
    path = tmp_path / "space.yaml"
    path.write_text(
        text.replace("trials: 4, seed: 1", f"trials: 24, seed: 4, startup: 5{more}, scheduler: {scheduler}")
    )
    return load_space(path)


def work(sweep: Sweep, pieces: int = 10_000) -> list[tuple[str, float]]:
    """Train one trial at a time, as far as each is to go; (trial, goal) of each piece."""
    done = []
    while sweep.has_work and len(done) < pieces:
        trial = sweep.next()
        if trial is None:
            continue
        goal = sweep.goal(trial)
        done.append((trial, goal))
        candidate = sweep.known[trial].candidate
        lr, mixture = candidate.params["training.lr"], candidate.params["data.mixture.mqar"]
        metrics = {"recall": goal * mixture, "perplexity": 4 + mixture + abs(math.log(lr / 0.003)) / goal}
        if goal < 1:
            sweep.rung(trial, metrics, 1.0, round(8000 * goal))
        else:
            sweep.complete(trial, metrics, 2.0)
    sweep.settle()
    sweep.note_exhaustion()
    return done


def events(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "study.jsonl").read_text().splitlines()]
    return [{key: value for key, value in event.items() if key != "time"} for event in found]


@pytest.mark.parametrize("sampler", ["tpe", "evolution"])
@pytest.mark.parametrize(
    "scheduler", ["halving", "{halving: {type: promotion}}", "{halving: {by: perplexity}}"]
)
def test_rungs_survive_any_interruption(sampler: str, scheduler: str, tmp_path: Path) -> None:
    space = space_with(scheduler, tmp_path, f", sampler: {sampler}")
    whole = Sweep(space, tmp_path / "whole")
    done = work(whole)
    whole.close()
    parts: list[tuple[str, float]] = []
    while len(parts) < len(done):
        part = Sweep(space, tmp_path / "parts")
        parts += work(part, pieces=7)
        part.close()
    assert parts == done
    # A continued sweep says of a trial that was running that it is; nothing else differs.
    last = {e["trial"]: e for e in events(tmp_path / "whole") if e["event"] == "trial"}
    assert {e["trial"]: e for e in events(tmp_path / "parts") if e["event"] == "trial"} == last
    assert {e["state"] for e in last.values()} >= {"complete", "stopped"}


def test_stopped_trials_keep_what_they_scored_and_are_on_no_front(tmp_path: Path) -> None:
    sweep = Sweep(space_with("halving", tmp_path), tmp_path / "run")
    done = work(sweep)
    sweep.close()
    study = Study.read(tmp_path / "run")
    stopped = [trial for trial in study.trials.values() if trial.state == "stopped"]
    assert len(stopped) > 2
    assert study.counts()["complete"] == 24 - len(stopped)
    assert len(done) < 3 * 24
    for trial in stopped:
        assert trial.values == trial.rungs[-1]["values"]
        assert trial not in study.front()
        assert trial.progress == trial.rungs[-1]["share"]
    assert study.header.scheduler == "halving (stopping)"
    assert not list((tmp_path / "run").rglob("checkpoint.pt"))


def test_a_duplicate_of_a_stopped_trial_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "arch:\n  tokenizer: bytes\n  d_model: 16\n  layers: [mlp: {hidden: {$choice: [8, 16, 24, 32]}}]\n"
        "search: {trials: 4, sampler: random, scheduler: {halving: {eta: 2}}}\n"
    )
    sweep = Sweep(load_space(tmp_path / "small.yaml"), tmp_path / "run")
    while sweep.has_work:
        trial = sweep.next()
        if trial is None:
            continue
        score = {"recall": 0.0, "perplexity": float(trial)}
        if sweep.goal(trial) < 1:
            sweep.rung(trial, score, 1.0, 1)
        else:
            sweep.complete(trial, score, 1.0)
    sweep.close()
    study = Study.read(tmp_path / "run")
    assert {trial.id for trial in study.front()} == {"0000"}
    duplicates = [trial for trial in study.trials.values() if trial.state == "duplicate"]
    assert all(trial.id not in {t.id for t in study.complete} for trial in duplicates)


def test_a_rung_without_a_number_fails_the_trial(tmp_path: Path) -> None:
    sweep = Sweep(space_with("halving", tmp_path), tmp_path / "run")
    trial = next(found for found in iter(sweep.next, "") if found)
    sweep.rung(trial, {"recall": 0.1, "perplexity": math.inf}, 1.0, 800)
    sweep.close()
    assert events(tmp_path / "run")[-1]["cause"]["kind"] == "non-finite metric"


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("halvin", "search.scheduler: unknown value 'halvin'; did you mean 'halving'?"),
        ("{halving: {eta: 1}}", "search.scheduler.halving.eta: must be at least 2, found 1"),
        ("{halving: {etta: 3}}", "search.scheduler.halving.etta: unknown key 'etta'; did you mean 'eta'?"),
        ("{halving: {by: loss}}", "search.scheduler.halving.by: unknown objective 'loss'"),
        ("{asha: {}}", "search.scheduler.asha: unknown key 'asha'"),
        ("3", "search.scheduler: unknown value 3"),
    ],
)
def test_mistakes_are_located(scheduler: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        space_with(scheduler, tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).split(":")[1] != "1"
