"""The Parzen estimator: it learns where candidates are good, in spaces whose parameters come and go."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from archsearch.search.parzen import _category_weights, _Codes, _KernelChooser
from archsearch.search.samplers import Proposer
from archsearch.search.space import Candidate, SearchSpace, read_space

SPACES = Path(__file__).parent / "spaces"


def space_with(tmp_path: Path, sampler: str, seed: int = 1) -> SearchSpace:
    path = tmp_path / f"{sampler}{seed}.yaml"
    text = (SPACES / "hybrid.yaml").read_text()
    path.write_text(text.replace("seed: 1", f"seed: {seed}, startup: 8, sampler: {sampler}"))
    return read_space(path)


def scores(candidate: Candidate) -> list[float]:
    """Best where the first layer is Mamba-2 with a small state and the learning rate is near 0.003."""
    params = candidate.params
    first = params["arch.layers.0.$stack.0"]
    state = params.get("arch.layers.0.$stack.0.mamba2.d_state", 32)
    off = abs(math.log(params["training.lr"] / 0.003))
    mixture = params["data.mixture.mqar"]
    return [mixture - 0.2 * off - 0.3 * (first != "mamba2"), 4 + mixture + off + state / 16]


def searched(space: SearchSpace, trials: int) -> list[Candidate]:
    proposer, found = Proposer(space), []
    for i in range(trials):
        candidate = proposer.ask(str(i))
        found.append(candidate)
        proposer.accept()
        if any(amount > 0 for amount in space.violations(candidate).values()):
            proposer.reject(str(i), space.violations(candidate))
        else:
            proposer.complete(str(i), scores(candidate))
    return found


def test_it_goes_where_candidates_are_good(tmp_path: Path) -> None:
    def near(candidates: list[Candidate]) -> float:
        """Share with the right first layer, and its state where it has one, and about the right rate."""
        return float(
            np.mean([scores(found)[1] - found.params["data.mixture.mqar"] < 5.5 for found in candidates])
        )

    ours = np.mean([near(searched(space_with(tmp_path, "tpe", seed), 60)[30:]) for seed in range(3)])
    random = np.mean([near(searched(space_with(tmp_path, "random", seed), 60)[30:]) for seed in range(3)])
    assert ours > 2 * random


def test_stopped_trials_are_worse_than_those_that_were_not(tmp_path: Path) -> None:
    """However good they looked: proposals gather round what was trained to its end."""
    proposer = Proposer(space_with(tmp_path, "tpe"))
    for i in range(30):
        candidate = proposer.ask(str(i))
        proposer.accept()
        if candidate.params["training.lr"] < 0.003:
            proposer.complete(str(i), [0.2, 8.0])
        else:
            proposer.stop(str(i), [0.9, 3.0], 1 / 9)
    later = []
    for i in range(30, 50):
        later.append(proposer.ask(str(i)).params["training.lr"])
        proposer.accept()
        proposer.forget(str(i))
    assert np.median(later) < 0.003


def test_what_was_tried_is_not_proposed_again(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "arch:\n  tokenizer: bytes\n  d_model: 16\n  layers: [mlp: {hidden: {$int: [1, 40]}}]\n"
        "search: {seed: 0, startup: 6}\n"
    )
    proposer, seen = Proposer(read_space(tmp_path / "small.yaml")), []
    for i in range(20):
        hidden = proposer.ask(str(i)).params["arch.layers.0.mlp.hidden"]
        proposer.accept()
        proposer.complete(str(i), [float(-abs(hidden - 20)), float(abs(hidden - 20))])
        seen.append(hidden)
    assert len(set(seen[6:])) == 14
    assert len(set(seen[6:]) & set(seen[:6])) == 0


@pytest.mark.parametrize(("categories", "trials"), [(2, 1), (5, 3), (3, 25)])
def test_a_kernel_draws_as_its_weights_say(categories: int, trials: int) -> None:
    same, other = _category_weights(categories, trials)
    assert same + (categories - 1) * other == pytest.approx(1)
    rng, codes = np.random.default_rng(0), _Codes(3)
    chooser = _KernelChooser({"a": 1}, codes, trials, rng)
    drawn = [chooser.categorical("a", range(categories)) for _ in range(4000)]
    assert np.mean(np.array(drawn) == 1) == pytest.approx(same, abs=0.03)


def test_numbers_stay_in_their_ranges_and_near_their_centre() -> None:
    rng, codes = np.random.default_rng(0), _Codes(3)
    center: dict[str, Any] = {"real": 0.0101, "log": 1e-4, "int": 64}
    for _ in range(200):
        chooser = _KernelChooser(center, codes, 10, rng)
        assert 0.01 <= chooser.real("real", 0.01, 0.02, False) <= 0.02
        assert 1e-4 <= chooser.real("log", 1e-4, 1e-2, True) <= 1e-2
        assert chooser.integer("int", 16, 64, 16) in (16, 32, 48, 64)
    code_p = codes.encode({"log": 1e-3, "int": 64})
    assert np.isnan(code_p[codes.names["real"]])
    assert code_p[codes.names["log"]] == pytest.approx(0.5)
    assert code_p[codes.names["int"]] == 1
