"""Layouts made larger: what follows d_model follows it, heads keep their channels, the stack repeats."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archsearch.search.scaling import describe, parse_scale, scaled
from archsearch.spec import ModelSpec, Node, load_spec, model_cost

SPECS = sorted(Path("specs").glob("*.yaml"))


def layers(spec: ModelSpec) -> Iterator[Node]:
    for node in spec.nodes:
        yield from node.walk()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_every_layout_of_the_library_scales(path: Path) -> None:
    spec = load_spec(path)
    wide, deep = scaled(spec, width=2), scaled(spec, depth=3)
    assert wide.d_model == 2 * spec.d_model
    pairs = zip(layers(spec), layers(wide), strict=True)
    for small, large in pairs:
        assert small.kind == large.kind
        for name in ("head_dim", "value_dim", "key_dim", "d_state", "experts", "top_k", "window"):
            assert getattr(small.layer, name, None) == getattr(large.layer, name, None)
        if not small.branches:
            assert large.layer.inner_width(wide.d_model) == 2 * small.layer.inner_width(spec.d_model)
    assert [node.kind for node in deep.nodes] == 3 * [node.kind for node in spec.nodes]
    assert deep.d_model == spec.d_model
    # Reading it back is the same model: what is trained is what was shown.
    assert ModelSpec.model_validate(wide.dump()).hash == wide.hash
    small_cost, large_cost = model_cost(spec, 64).total, model_cost(wide, 64).total
    assert 2 < large_cost.params / small_cost.params <= 4.1


def test_defaults_that_depend_on_the_width_are_scaled_not_taken_anew() -> None:
    """96 / 64 heads would be one of 96 channels, and twice as wide three of 64."""
    spec = ModelSpec.model_validate({"vocab_size": 9, "d_model": 96, "layers": ["attention"]})
    wide = scaled(spec, width=2)
    layer: Any = wide.nodes[0].layer
    assert (layer.heads, layer.head_dim) == (2, 96)


def test_one_is_the_same_model() -> None:
    spec = load_spec("specs/samba_tiny.yaml")
    assert scaled(spec) is spec


@pytest.mark.parametrize(
    ("width", "message"),
    [(1.5, r"attention\.heads 1 x 1\.5 is no whole number"), (0.01, r"d_model 64 x 0\.01 is no whole")],
)
def test_what_cannot_be_scaled_is_refused(width: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"attention-tiny: cannot be scaled by .*{message}"):
        scaled(load_spec("specs/attention_tiny.yaml"), width=width)


def test_layers_that_do_not_fit_at_the_new_width_are_refused() -> None:
    spec = ModelSpec.model_validate(
        {"vocab_size": 9, "d_model": 64, "layers": [{"mamba2": {"head_dim": 64, "expand": 1}}]}
    )
    with pytest.raises(ValueError, match=r"cannot be scaled by width=0\.5.*head_dim 64 does not divide"):
        scaled(spec, width=0.5)


def test_scales_as_people_write_them() -> None:
    assert parse_scale("width=2,depth=3") == (2, 3)
    assert parse_scale("width=1.5") == (1.5, 1)
    for text in ("2", "width=x", "height=2", "depth=1.5", "depth=0", "width=-1", "width=nan"):
        with pytest.raises(ValueError, match="--scale"):
            parse_scale(text)


def test_sizes_are_told() -> None:
    assert describe(load_spec("specs/attention_tiny.yaml")) == "d_model 64, 4 layers, 117k parameters"
