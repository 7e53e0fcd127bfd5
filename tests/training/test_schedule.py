"""Learning rates by step, and the training section's own checks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from archsearch.training.schedule import learning_rate
from archsearch.training.spec import TrainingSpec


def rates(steps: int, **fields: Any) -> list[float]:
    spec = TrainingSpec(tokens=steps * 256, context=128, tokens_per_step=256, lr=1.0, **fields)
    assert spec.steps == steps
    return [learning_rate(spec, step) for step in range(steps)]


def test_warm_up_rises_evenly_to_the_peak() -> None:
    found = rates(100, warmup=0.1, schedule="constant")
    assert found[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert found[10:] == [1.0] * 90


def test_cosine_falls_from_the_peak_to_its_share() -> None:
    found = rates(110, warmup=10 / 110, schedule="cosine", final_lr=0.1)
    assert found[10] == 1.0
    assert found[60] == pytest.approx(0.1 + 0.9 / 2)
    assert found[109] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.99)) / 2)
    assert all(a > b for a, b in pairwise(found[10:]))


def test_wsd_is_flat_and_then_falls_in_a_line() -> None:
    found = rates(100, warmup=0.1, schedule="wsd", decay=0.2, final_lr=0.0)
    assert set(found[10:81]) == {1.0}
    assert found[80:] == pytest.approx([1 - i / 20 for i in range(20)])


@given(
    steps=st.integers(1, 400),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0.01, 1),
    final_lr=st.floats(0, 1),
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
)
def test_rates_stay_within_the_peak_and_never_rise_after_warm_up(
    steps: int, warmup: float, decay: float, final_lr: float, schedule: str
) -> None:
    decay = min(decay, 1 - warmup)
    found = rates(steps, warmup=warmup, decay=decay, final_lr=final_lr, schedule=schedule)
    assert all(0 <= rate <= 1 for rate in found)
    assert found[0] > 0
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_budgets_are_whole_steps_and_at_least_one() -> None:
    assert TrainingSpec(tokens=10_000, context=128, tokens_per_step=1024).steps == 9
    assert TrainingSpec(tokens=1).steps == 1
    assert TrainingSpec.model_validate({"tokens": "1.5M"}).tokens == 1_500_000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens_per_step": 100}, "100 tokens a step are no multiple of the context, 128"),
        ({"betas": [1.0, 0.9]}, "expected two numbers in"),
        ({"schedule": "wsd", "warmup": 0.6, "decay": 0.5}, "a warm-up of 0.6 and a decay of 0.5 overlap"),
        ({"lr": float("nan")}, "finite"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSpec.model_validate(fields)
