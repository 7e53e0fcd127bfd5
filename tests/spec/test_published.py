"""The published models: legal, and as large as their publishers say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from archsearch.spec import ModelSpec, load_spec, model_cost, parse_spec, to_yaml

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "specs" / "published").glob("*.yaml"))


def _script() -> ModuleType:
    place = importlib.util.spec_from_file_location(
        "published_table", ROOT / "benchmarks" / "published_table.py"
    )
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


table = _script()
MODELS = table.published()
each_spec = pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)


def test_every_spec_is_published_somewhere() -> None:
    assert {path.stem for path in SPECS} == set(MODELS)
    assert all(model["source"] and model["model"] for model in MODELS.values())


@each_spec
def test_parameters_are_the_published_ones(path: Path) -> None:
    total = model_cost(load_spec(path), context=1).total
    published = MODELS[path.stem].get("parameters")
    assert published is None or table.agrees(total.params, published), (total.params, published)
    assert ("active" in MODELS[path.stem]) == (total.active_params < total.params)


@pytest.mark.parametrize(
    ("params", "published", "same"),
    [
        (1_000_999, 1_000_000, True),
        (1_001_001, 1_000_000, False),
        (421_793_280, "421M", True),
        (422_000_001, "421M", False),
        (7_356_749_648, "7.4B", True),
        (7_299_999_999, "7.4B", False),
        (33_642_516_224, "34B", True),
    ],
)
def test_what_agrees(params: int, published: int | str, same: bool) -> None:
    assert table.agrees(params, published) is same


@each_spec
def test_says_what_it_is_and_survives_writing(path: Path) -> None:
    text = path.read_text()
    assert 1 <= next(i for i, line in enumerate(text.splitlines()) if not line.startswith("#")) <= 4
    spec = load_spec(path)
    again = parse_spec(to_yaml(spec.dump()), "dumped")
    resolved = ModelSpec.model_validate(spec.resolved())
    assert again.hash == resolved.hash == spec.hash


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, model in MODELS.items() if "transformers" in model))
def test_transformers_has_as_many_parameters(name: str) -> None:
    pytest.importorskip("transformers")
    params = model_cost(load_spec(ROOT / "specs" / "published" / f"{name}.yaml"), context=1).total.params
    assert table.transformers_count(MODELS[name]["transformers"]) == params
