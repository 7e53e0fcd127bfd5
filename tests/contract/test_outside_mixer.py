"""A mixer that someone else writes: one spec class, one module, one line in the table."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from archsearch.cli import app
from archsearch.compiler import compile_model
from archsearch.mixers.table import MIXERS
from archsearch.search.layout import draw
from archsearch.search.space import load_space
from archsearch.spec import ModelSpec, SpecError, model_cost, parse_spec
from archsearch.spec.entries import layer_kinds
from archsearch.ui.glyphs import layout_text, legend
from contract.averages import define
from contract.building import continued, ids_of, model_of, relative


@pytest.fixture
def averages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    layer, mixer = define()
    monkeypatch.setitem(MIXERS, layer.kind, mixer)
    yield
    monkeypatch.undo()
    del layer, mixer
    # The language knows a kind for as long as its class lives.
    gc.collect()


HYBRID = """\
vocab_size: 23
d_model: 16
defaults: {averages: {rate: 0.9}}
layers:
  - averages: {id: first}
  - parallel:
      branches: [averages, attention: {heads: 2}]
      merge: {concat: {projection: shared}}
  - pattern: E-(E|*)
  - share: first
"""


@pytest.mark.usefixtures("averages")
def test_is_read_costed_compiled_and_stepped() -> None:
    spec = parse_spec(HYBRID)
    model = model_of(spec)
    assert sum(p.numel() for p in model.parameters()) == model_cost(spec).total.params
    ids_bl = ids_of(spec, 2, 9)
    logits, state = continued(model, ids_bl, 4)
    with torch.no_grad():
        assert relative(logits, model(ids_bl)) <= 1e-10
    assert state.bytes() == 2 * model_cost(spec, 9, "float64").total.state_bytes
    fresh = compile_model(spec)
    assert (fresh.layers[0].layer.rate == 0.9).all()


@pytest.mark.usefixtures("averages")
def test_survives_writing_and_counts_in_the_hash() -> None:
    spec = parse_spec(HYBRID)
    assert ModelSpec.model_validate(spec.resolved()).hash == spec.hash
    assert parse_spec(HYBRID.replace("0.9", "0.8")).hash != spec.hash


@pytest.mark.usefixtures("averages")
def test_its_mistakes_are_located_and_its_name_is_offered() -> None:
    with pytest.raises(SpecError, match=r":3:23: defaults.averages.rate: must be less than 1"):
        parse_spec(HYBRID.replace("0.9", "1.5"))
    with pytest.raises(SpecError, match=r"unknown layer 'average'; did you mean 'averages'\?"):
        parse_spec(HYBRID.replace("- averages:", "- average:"))


@pytest.mark.usefixtures("averages")
def test_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "hybrid.yaml"
    path.write_text(HYBRID)
    shown = CliRunner().invoke(app, ["show", str(path)])
    assert shown.exit_code == 0
    assert "averages" in shown.stdout


SPACE = """\
arch:
  tokenizer: bytes
  d_model: 16
  layers:
    - $stack: {depth: 4, of: [averages: {rate: {$float: [0.1, 0.9]}}, mlp]}
data: {mixture: {reference: 1}}
training: {tokens: 4K, context: 32}
objectives: {perplexity: minimize}
constraints: ["params <= 100K"]
search: {trials: 8}
"""


@pytest.mark.usefixtures("averages")
def test_is_searched_and_drawn(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    layouts = [draw(experiment.arch.nodes) for experiment in load_space(path).samples]
    found = [layer for layout in layouts for layer in layout if layer["kind"] == "averages"]
    assert found
    console = Console(width=60, record=True)
    for layout in layouts:
        console.print(layout_text(layout, 20))
    console.print(*legend(layouts))
    drawn = console.export_text()
    assert "E" in drawn
    assert "averages" in drawn


def test_is_held_to_the_contracts_of_the_table() -> None:
    """Listed before the tests are collected, as a line in the table would have it."""
    command = [sys.executable, "-m", "pytest", "tests/contract/test_mixers.py", "-p", "contract.averages"]
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [*command, "-k", "averages", "-p", "no:cacheprovider", "-rA"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root / "tests")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout
    held = {
        line.split("::")[1].split("[")[0] for line in run.stdout.splitlines() if line.startswith("PASSED")
    }
    assert held >= {
        "test_steps_continue_a_prefill_as_one_forward_would",
        "test_shapes_and_counted_parameters",
        "test_the_past_does_not_see_the_future",
    }


def test_is_forgotten_with_its_class() -> None:
    assert "averages" not in layer_kinds()
