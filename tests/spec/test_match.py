"""`match`: the width that it solves meets the budget, or the reason why none does."""

import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from archsearch.spec import model_cost
from archsearch.spec.match import freed, matched, parse_match, widths
from archsearch.spec.model import ModelSpec

LAYERS = [
    "mamba2",
    {"attention": {"heads": 3}},
    "gated_conv",
    "mlp",
    {"parallel": {"branches": ["mamba2", "mlp"]}},
]


def spec_of(layers: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "tokenizer": "bytes",
        "defaults": {"mamba2": {"head_dim": 32}},
        "layers": [*layers, "mlp"],
        **more,
    }


def problem(value: Any, **match: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        matched(value, parse_match(match), 128)
    return str(caught.value.errors()[0]["msg"])


@given(
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=5),
    st.sampled_from(["params", "active_params", "flops_per_token", "flops_per_token@512"]),
    st.floats(1.2, 8),
)
def test_every_layout_has_the_same_budget(layers: list[Any], cost: str, factor: float) -> None:
    """The budget is that of the layout with a narrow mlp, and some more."""
    least = spec_of(layers, d_model=96)
    least["defaults"] = {**least["defaults"], "mlp": {"expand": 1}}
    context = 512 if "@" in cost else 128
    name = cost.partition("@")[0]
    target = factor * model_cost(ModelSpec.model_validate(least), context).total.as_dict()[name]
    found = matched(spec_of(layers, d_model=96), parse_match({cost: target, "by": "mlp.expand"}), 128)
    assert model_cost(found, context).total.as_dict()[name] == pytest.approx(target, rel=0.01)
    assert ModelSpec.model_validate(found.dump()).hash == found.hash


FREE = [
    *(
        (kind, field)
        for kind in ("attention", "mamba1", "mamba2", "mla", "moe", "kda")
        for field in widths(kind)
    ),
    *(("mlp", field) for field in ("expand", "hidden", "gate_scale")),
    *(("rglru", field) for field in ("width", "heads", "d_conv")),
    ("gated_conv", "width"),
    ("lightning", "heads"),
]


@settings(max_examples=150)
@given(
    st.sampled_from(FREE),
    st.sampled_from(["params", "active_params", "flops_per_token", "state_bytes"]),
    st.lists(st.sampled_from(["mamba2", "attention", "gated_conv"]), max_size=2),
    st.sampled_from([32, 48, 64]),
    st.integers(1, 96),
    st.sampled_from([1.0, 0.995, 1.3, 0.6, 40.0]),
)
def test_a_budget_is_met_wherever_some_width_meets_it(
    free: tuple[str, str], cost: str, more: list[str], d_model: int, width: int, factor: float
) -> None:
    """Each width up to 96 is tried: where one meets the budget, match finds one; what it finds meets it; and
    where it finds none, it says why."""
    kind, field = free
    value = spec_of([kind, *more], d_model=d_model, defaults={"mamba2": {"head_dim": 16}})
    value["defaults"].setdefault(kind, {}).pop(field, None)

    def at(steps: int) -> float | None:
        number = steps / d_model if field in ("expand", "gate_scale") else steps
        defaults = {**value["defaults"], kind: {**value["defaults"][kind], field: number}}
        try:
            spec = ModelSpec.model_validate({**value, "defaults": defaults})
        except ValidationError:
            return None
        return float(model_cost(spec, 128).total.as_dict()[cost])

    found = {steps: amount for steps in range(1, 97) if (amount := at(steps)) is not None}
    assume(found.get(width))
    target = found[width] * factor
    try:
        spec = matched(value, parse_match({cost: target, "by": f"{kind}.{field}"}), 128)
    except ValidationError as error:
        assert not any(abs(amount - target) <= 0.01 * target for amount in found.values())
        (why,) = error.errors()
        assert re.search(r"within 1%: (the (nearest|smallest|largest)|it is .* whatever)", why["msg"]), why[
            "msg"
        ]
    else:
        assert model_cost(spec, 128).total.as_dict()[cost] == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize(("target", "heads"), [(311e3, 3), (2e6, 4), (7e6, 5)])
def test_the_models_width_is_what_its_heads_divide(target: float, heads: int) -> None:
    value = spec_of([{"attention": {"heads": heads}}])
    found = matched(value, parse_match({"params": target, "by": "d_model"}), 128)
    assert found.d_model % (2 * heads) == 0
    assert model_cost(found).total.params == pytest.approx(target, rel=0.01)


def test_whole_numbers_and_state() -> None:
    value = spec_of(["mamba2"], d_model=64)
    found = matched(value, parse_match({"state_bytes@1024": "20KiB", "by": "mamba2.d_state"}), 128)
    assert isinstance(found.nodes[0].layer.d_state, int)  # type: ignore[attr-defined]
    assert model_cost(found, 1024).total.state_bytes == pytest.approx(20 * 1024, rel=0.01)


def test_a_layer_that_gives_the_width_keeps_it() -> None:
    value = spec_of([{"mlp": {"hidden": 7}}], d_model=64)
    found = matched(value, parse_match({"params": 200_000, "by": "mlp.expand"}), 128)
    assert found.nodes[0].layer.hidden == 7  # type: ignore[attr-defined]
    assert model_cost(found).total.params == pytest.approx(200_000, rel=0.01)


def test_why_a_budget_is_not_met() -> None:
    wide = spec_of([{"attention": {"heads": 4, "head_dim": 16}}], d_model=64)
    assert "the smallest is 65.9k (mlp.expand 0.015625)" in problem(wide, params=10_000, by="mlp.expand")
    assert "whatever mamba2.expand is" in problem(wide, params=1e6, by="mamba2.expand")
    coarse = spec_of(["mamba2"], d_model=64)
    text = problem(coarse, params=115_000, by="mamba2.expand")
    assert "the nearest are" in text
    assert "within 1%" in text
    assert "the largest tried is" in problem(coarse, params=1e15, by="mlp.expand")


def test_a_mistake_elsewhere_is_said_as_it_is() -> None:
    value = spec_of([{"attention": {"hedas": 4}}], d_model=64)
    assert "unknown key 'hedas'" in problem(value, params=1e6, by="mlp.expand")
    assert "leave it out here" in problem(value, params=1e6, by="d_model")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "expected a budget such as"),
        ({"by": "mlp.expand"}, "found 0"),
        ({"params": "1M", "state_bytes@64": "1M", "by": "mlp.expand"}, "found 2"),
        ({"params": "1M"}, "missing key 'by'"),
        ({"parms": "1M", "by": "mlp.expand"}, "did you mean 'params'?"),
        ({"params": "many", "by": "mlp.expand"}, "expected a number such as 4M, found 'many'"),
        ({"params": 0, "by": "mlp.expand"}, "above 0"),
        ({"params": True, "by": "mlp.expand"}, "found true"),
        ({"params": "1M", "by": "mlp"}, "a field of a layer such as mlp.expand"),
        ({"params": "1M", "by": "mpl.expand"}, "did you mean 'mlp'?"),
        ({"params": "1M", "by": "mlp.expnd"}, "did you mean 'expand'?"),
        ({"params": "1M", "by": "mlp.activation"}, "is no number"),
    ],
)
def test_mistakes_in_it(value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_match(value)
    assert message in str(caught.value.errors()[0]["msg"])


def test_a_finished_spec_is_matched_anew() -> None:
    value = {"params": "300K", "by": "mlp.expand"}
    spec = matched(spec_of(["mamba2"], d_model=96), parse_match(value), 128)
    again = freed(spec, {"params": "200K", "by": "mlp.expand"})
    assert again.pop("match") == {"params": "200K", "by": "mlp.expand"}
    assert model_cost(
        matched(again, parse_match({"params": "200K", "by": "mlp.expand"}), 128)
    ).total.params == (pytest.approx(200_000, rel=0.01))
