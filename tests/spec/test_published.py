"""The published models: legal, and as large as their publishers say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

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


IMPORTED = {
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "gemma2",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "llama",
    "mamba",
    "mamba2",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
}
"""Model types whose import says, independently of the specs, what the published configuration computes."""


def _computed(value: Any) -> Any:
    """A canonical form without what only starts or balances training, or makes no difference in float32."""
    if isinstance(value, dict):
        # transformers clamps Nemotron-H's step sizes from below, which its training did not.
        left_out = {"std", "balance", "renormalise_eps", "dt_limit"}
        kept = {name: _computed(part) for name, part in value.items() if name not in left_out}
        return {name: part for name, part in kept.items() if part not in ({}, [1.0] * 5)}
    return [_computed(part) for part in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(n for n, m in MODELS.items() if m.get("transformers", {}).get("model_type") in IMPORTED)
)
def test_the_import_of_the_published_configuration_is_the_same_model(name: str) -> None:
    pytest.importorskip("transformers")
    from archsearch.interop.importing import plan

    imported = plan(table.transformers_config(MODELS[name]["transformers"])).spec()
    spec = load_spec(ROOT / "specs" / "published" / f"{name}.yaml")
    assert _computed(imported.canonical()) == _computed(spec.canonical())


@each_spec
def test_the_module_has_as_many_parameters(path: Path) -> None:
    import torch

    from archsearch.compiler.model import LanguageModel
    from archsearch.mixers.kernels import choose_kernels

    spec = load_spec(path)
    with torch.device("meta"):
        model = LanguageModel(spec, choose_kernels("native", "cpu"))
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert sum(parameter.numel() for parameter in model.parameters()) == model_cost(spec, 1).total.params
