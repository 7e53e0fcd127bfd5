"""The README is held to what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archsearch.spec import parse_spec
from archsearch.spec.entries import layer_kinds
from archsearch.spec.merges import MERGES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_architecture_shown_is_legal() -> None:
    spec = parse_spec(blocks("yaml")[0], "README")
    assert len(spec.nodes) == 12


def test_the_space_shown_is_the_quickstart() -> None:
    assert blocks("yaml")[1] == (ROOT / "search_spaces" / "quickstart.yaml").read_text()


def test_the_python_shown_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(blocks("python")[0], names)
    assert tuple(names["logits"].shape) == (2, 384)  # type: ignore[attr-defined]


def test_every_layer_and_merge_is_in_a_table() -> None:
    rows = "".join(line for line in README.splitlines(keepends=True) if line.startswith("|"))
    # Layers that other tests define are not the README's business.
    ours = [kind for kind, layer in layer_kinds().items() if layer.__module__.startswith("archsearch.")]
    for kind in [*ours, *MERGES]:
        assert f"`{kind}`" in rows, kind


@pytest.mark.parametrize("name", sorted(set(re.findall(r"benchmarks/[\w]+\.\w+", README))))
def test_every_benchmark_named_exists(name: str) -> None:
    assert (ROOT / name).is_file()


def test_every_benchmark_is_named() -> None:
    for script in (ROOT / "benchmarks").glob("*.py"):
        runs_alone = "__main__" in script.read_text()
        assert not runs_alone or f"benchmarks/{script.name}" in README, script.name
