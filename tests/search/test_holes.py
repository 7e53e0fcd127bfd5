"""Filling holes: what comes out, under which names, and where an error is said to be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.search.choosers import EdgeChooser, RandomChooser, ReplayChooser
from archsearch.search.dryrun import describe
from archsearch.search.holes import Filled, Size, short_name
from archsearch.search.parsing import parse_space
from archsearch.search.space import load_space, read_space
from archsearch.spec import SpecError

SPACES = Path(__file__).parent / "spaces"


def fill(value: object, last: bool = False) -> Filled:
    filled = Filled()
    filled.value = parse_space(value).fill(EdgeChooser(last), "", (), filled)
    return filled


def test_a_value_without_holes_is_itself() -> None:
    value = {"layers": ["mlp", {"attention": {"heads": 2}}]}
    assert fill(value).value == value
    assert fill(value).params == {}


def test_holes_inside_an_alternative_exist_only_there() -> None:
    value = {"layers": [{"$choice": ["mlp", {"mamba2": {"d_state": {"$int": [8, 16, 4]}}}]}]}
    assert fill(value).params == {"layers.0": "mlp"}
    taken = fill(value, last=True)
    assert taken.value == {"layers": [{"mamba2": {"d_state": 16}}]}
    assert taken.params == {"layers.0": "mamba2", "layers.0.mamba2.d_state": 16}


def test_a_stack_becomes_layers_of_the_list_it_stands_in() -> None:
    value = {"layers": ["mlp", {"$stack": {"depth": 2, "of": ["attention", "mamba2"]}}, "mlp"]}
    filled = fill(value)
    assert filled.value == {"layers": ["mlp", "attention", "attention", "mlp"]}
    assert filled.params == {"layers.1.$stack.0": "attention", "layers.1.$stack.1": "attention"}


def test_a_stack_may_be_the_whole_list_or_one_branch() -> None:
    stack = {"$stack": {"depth": 2, "of": ["mlp"]}}
    assert fill({"layers": stack}).value == {"layers": ["mlp", "mlp"]}
    assert fill({"branches": [stack, "attention"]}).value == {"branches": [["mlp", "mlp"], "attention"]}


def test_a_list_in_a_stack_is_its_layers() -> None:
    group = ["attention", {"mlp": {"expand": {"$choice": [2, 4]}}}]
    filled = fill({"layers": [{"$stack": {"depth": 2, "of": [group]}}]}, last=True)
    assert filled.value == {"layers": ["attention", {"mlp": {"expand": 4}}] * 2}
    assert filled.where(("layers", 3, "mlp", "expand"))[:5] == ("layers", 0, "$stack", "of", 0)


def test_alternatives_of_one_kind_have_names_of_their_own() -> None:
    value = {"$choice": [{"mlp": {"expand": {"$int": [1, 2]}}}, {"mlp": {"hidden": {"$int": [8, 9]}}}]}
    names = {hole.name for hole in parse_space(value).holes("layer")}
    assert names == {"layer", "layer.mlp.expand", "layer.mlp#2.mlp.hidden"}


def test_counts_may_be_written_with_units() -> None:
    filled = fill({"tokens": {"$int": ["1M", "4M"]}}, last=True)
    assert filled.value == {"tokens": 4_000_000}


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"$choice": [1, {"$int": [1, 5]}, {"$float": [0, 1]}]}, Size(7, 1)),
        ({"a": {"$int": [0, 10, 5]}, "b": {"$simplex": ["x", "y", "z"]}}, Size(3, 2)),
        (
            {"$stack": {"depth": {"$int": [1, 3]}, "of": ["a", {"b": {"$choice": [1, 2]}}]}},
            Size(3 + 9 + 27, 0),
        ),
    ],
)
def test_size(value: object, size: Size) -> None:
    assert parse_space(value).size() == size


@given(st.integers(0, 2**32 - 1))
def test_recorded_parameters_give_the_candidate_again(seed: int) -> None:
    space = read_space(SPACES / "hybrid.yaml")
    candidate = space.candidate(RandomChooser(np.random.default_rng(seed)))
    assert candidate.experiment is not None, candidate.problem
    again = space.replay(candidate.params)
    assert again.params == candidate.params
    assert again.experiment == candidate.experiment


def test_parameters_of_another_space_are_refused() -> None:
    space = read_space(SPACES / "hybrid.yaml")
    params = space.fill(EdgeChooser(last=False)).params
    for name, value in (("arch.d_model", 33), ("training.lr", 1.0), ("arch.layers.0.$stack.depth", 9)):
        with pytest.raises(ValueError, match=name.replace("$", r"\$")):
            space.fill(ReplayChooser(params | {name: value}))
    del params["arch.d_model"]
    with pytest.raises(ValueError, match=r"arch\.d_model: not recorded"):
        space.fill(ReplayChooser(params))


def test_an_error_in_a_candidate_is_located_in_the_space(tmp_path: Path) -> None:
    """The second position of the stack fails because of what stands in `of`, and that is where it is said."""
    path = tmp_path / "space.yaml"
    path.write_text(
        "arch:\n"
        "  tokenizer: bytes\n"
        "  d_model: {$choice: [32, 48]}\n"
        "  layers:\n"
        "    - mlp\n"
        "    - $stack:\n"
        "        depth: 2\n"
        "        of:\n"
        "          - mlp\n"
        "          - mamba2:\n"
        "              head_dim: 64\n"
    )
    space = load_space(path)  # allowed: with d_model 32 the candidate is valid
    params = {"arch.d_model": 48, "arch.layers.1.$stack.0": "mlp", "arch.layers.1.$stack.1": "mamba2"}
    assert space.replay(params | {"arch.d_model": 32}).experiment is not None
    problem = space.replay(params).problem
    assert problem.startswith(
        f"{path}:11:15: arch.layers.1.$stack.of.1.mamba2.head_dim: head_dim 64 does not"
    )


def test_a_layout_to_start_from_must_fit(tmp_path: Path) -> None:
    (tmp_path / "wide.yaml").write_text("vocab_size: 100\nd_model: 8\nlayers: [mlp]\n")
    (tmp_path / "space.yaml").write_text(
        "arch: {tokenizer: bytes, d_model: {$choice: [8, 16]}, layers: [mlp]}\n"
        "search:\n"
        "  start_from: [wide.yaml]\n"
    )
    with pytest.raises(SpecError, match=r"space\.yaml:3:16: search\.start_from\.0: does not fit this space"):
        load_space(tmp_path / "space.yaml")


def test_changes_are_named(tmp_path: Path) -> None:
    text = (SPACES / "hybrid.yaml").read_text()
    changed = text.replace("trials: 4, seed: 1", "trials: 9, seed: 2").replace("[8, 16]", "[8, 32]")
    (tmp_path / "space.yaml").write_text(changed)
    old, new = read_space(SPACES / "hybrid.yaml"), read_space(tmp_path / "space.yaml")
    assert new.hash != old.hash
    assert new.changes_from(old) == [
        "search.seed: 1 -> 2",
        "arch.layers.0.$stack.of.0.mamba2.d_state.$choice.1: 16 -> 32",
    ]


def test_more_trials_or_cores_are_the_same_space(tmp_path: Path) -> None:
    text = (SPACES / "hybrid.yaml").read_text()
    (tmp_path / "space.yaml").write_text(text.replace("trials: 4", "trials: 9") + "resources: {cpu: 2}\n")
    assert read_space(tmp_path / "space.yaml").hash == read_space(SPACES / "hybrid.yaml").hash


def test_a_space_is_described_before_it_is_run() -> None:
    space = load_space(SPACES / "hybrid.yaml")
    text = describe(space)
    assert "5,852 combinations, each with up to 3 continuous dimensions" in text
    for hole in space.holes:
        assert hole.name in text
    assert "breaks params <= 120K" in text


def test_short_names() -> None:
    assert short_name("arch.layers.0.$stack.3.mamba2.d_state") == "3.mamba2.d_state"
    assert short_name("training.lr") == "lr"


def test_reading_a_space_loads_no_heavy_package() -> None:
    code = (
        "import sys, archsearch.search.space as space, archsearch.search.dryrun as dryrun\n"
        f"dryrun.describe(space.load_space({str(SPACES / 'hybrid.yaml')!r}))\n"
        "assert not {'torch', 'ray', 'optuna'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
