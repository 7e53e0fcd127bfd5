"""Mutations: every child is a candidate of the space, and each kind of change occurs."""

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.search.choosers import RandomChooser, ReplayChooser
from archsearch.search.crowding import crowding
from archsearch.search.mutations import MutatedChooser, Mutator
from archsearch.search.space import SearchSpace, read_space

SPACES = Path(__file__).parent / "spaces"
STACK = "arch.layers.0.$stack"
HYBRID = read_space(SPACES / "hybrid.yaml")


def layers(params: dict[str, Any]) -> list[Any]:
    return [params[f"{STACK}.{i}"] for i in range(params[f"{STACK}.depth"])]


def fill(space: SearchSpace, chooser: Any) -> dict[str, Any]:
    return space.fill(chooser).params


@given(st.integers(0, 2**32 - 1))
def test_children_are_candidates_of_the_space(seed: int) -> None:
    rng = np.random.default_rng(seed)
    params = fill(HYBRID, RandomChooser(rng))
    mutator = Mutator(HYBRID.holes)
    for _ in range(5):
        params = fill(HYBRID, mutator.child(params, rng))
        assert fill(HYBRID, ReplayChooser(params)) == params


def test_every_kind_of_change_occurs() -> None:
    rng = np.random.default_rng(0)
    mutator = Mutator(HYBRID.holes)
    found = set()
    for _ in range(400):
        parent = fill(HYBRID, RandomChooser(rng))
        child = fill(HYBRID, mutator.child(parent, rng))
        before, after = layers(parent), layers(child)
        if len(after) == len(before) + 1:
            doubled = any(after == [*before[:i], before[i - 1], *before[i:]] for i in range(1, len(after)))
            found.add("duplicate" if doubled else "insert")
        elif len(after) == len(before) - 1:
            found.add("delete")
        elif sorted(after) == sorted(before) and after != before:
            found.add("swap")
        elif len(after) == len(before) and sum(map(operator.ne, after, before)) == 1:
            place = next(i for i, (a, b) in enumerate(zip(after, before, strict=True)) if a != b)
            if "parallel" in (after[place], before[place]):
                found.add("parallel" if after[place] == "parallel" else "sequential")
        elif after == before:
            shared = child.keys() & parent.keys()
            found |= {name.split(".")[-1] for name in shared if child[name] != parent[name]}
    assert {"insert", "duplicate", "delete", "swap", "parallel", "sequential"} <= found
    assert {"lr", "d_state", "mqar"} <= found


def test_a_swap_takes_the_fields_along() -> None:
    rng = np.random.default_rng(1)
    mutator = Mutator(HYBRID.holes)
    parent = {
        **fill(HYBRID, RandomChooser(rng)),
        f"{STACK}.depth": 2,
        f"{STACK}.0": "mamba2",
        f"{STACK}.0.mamba2.d_state": 16,
        f"{STACK}.1": "attention",
    }
    swapped = []
    while not swapped:
        child = fill(HYBRID, mutator.child(parent, rng))
        swapped = [child] if layers(child) == ["attention", "mamba2"] else []
    assert swapped[0][f"{STACK}.1.mamba2.d_state"] == 16


def test_a_branch_keeps_what_its_layer_had() -> None:
    """From sequential to parallel, the state size of the layer becomes that of the branch."""
    params = {"layers.0": "parallel"}
    chooser = MutatedChooser(params, {"layers.0.mamba2.d_state": 48}, set(), np.random.default_rng(0))
    assert chooser.integer("layers.0.parallel.branches.0.mamba2.d_state", 16, 64, 16) == 48
    assert chooser.integer("layers.0.parallel.branches.0.mamba2.heads", 1, 1, 1) == 1


def test_lists_without_a_stack_trade_places_too() -> None:
    space = read_space(Path(__file__).parents[2] / "search_spaces/quickstart.yaml")
    rng = np.random.default_rng(0)
    mutator = Mutator(space.holes)
    parent = fill(space, RandomChooser(rng)) | {"arch.layers.0": "mamba2", "arch.layers.2": "attention"}
    children = [fill(space, mutator.child(parent, rng)) for _ in range(60)]
    pairs = {(child["arch.layers.0"], child["arch.layers.2"]) for child in children}
    assert {("attention", "mamba2"), ("mamba2", "mamba2"), ("attention", "attention")} <= pairs


@pytest.mark.parametrize(("low", "high", "step"), [(0, 10, 1), (8, 16, 8), (1, 2, 1)])
def test_a_changed_number_is_another_one(low: int, high: int, step: int) -> None:
    rng = np.random.default_rng(0)
    for given_value in range(low, high + 1, step):
        for _ in range(20):
            chooser = MutatedChooser({"n": given_value}, {}, {"n"}, rng)
            found = chooser.integer("n", low, high, step)
            assert found != given_value
            assert low <= found <= high
            assert (found - low) % step == 0


def test_crowding_is_infinite_at_the_ends() -> None:
    found = crowding(np.array([[0.0, 4.0], [1.0, 2.0], [1.5, 1.5], [4.0, 0.0]]))
    assert np.isinf(found[[0, 3]]).all()
    assert found[1] == pytest.approx(1.5 / 4 + 2.5 / 4)
