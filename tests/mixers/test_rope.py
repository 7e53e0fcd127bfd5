"""Rotations against formulas written out, and against the frequencies that transformers computes.

Shape suffixes: none; single vectors.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contract.building import random
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from archsearch.mixers.rope import Rotary, attention_factor, frequencies
from archsearch.spec.errors import FieldError
from archsearch.spec.layers import Rope

SCALINGS: list[dict[str, Any]] = [
    {"kind": "linear", "factor": 4.0},
    {
        "kind": "llama3",
        "factor": 8.0,
        "original_context": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    {
        "kind": "llama3",
        "factor": 3.0,
        "original_context": 64,
        "low_freq_factor": 2.0,
        "high_freq_factor": 5.0,
    },
    {"kind": "yarn", "factor": 40.0, "original_context": 4096},
    {"kind": "yarn", "factor": 32.0, "original_context": 4096, "truncate": False},
    {
        "kind": "yarn",
        "factor": 4.0,
        "original_context": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
    },
    {"kind": "yarn", "factor": 0.5, "original_context": 128},
    {"kind": "longrope", "factors": [1.0 + i / 7 for i in range(16)], "factor": 16.0, "original_context": 64},
    {"kind": "longrope", "factors": [2.0] * 16, "attention_factor": 1.1},
]
NAMES = {"original_context": "original_max_position_embeddings"}


@given(
    fraction=st.sampled_from([0.25, 0.5, 1.0]),
    interleaved=st.booleans(),
    scaling=st.sampled_from([None, *SCALINGS[:6]]),
    distance=st.integers(0, 60),
    start=st.integers(0, 4000),
)
def test_rotation_turns_scores_into_functions_of_distance(
    fraction: float, interleaved: bool, scaling: dict[str, Any] | None, distance: int, start: int
) -> None:
    spec = {"theta": 100.0, "fraction": fraction, "interleaved": interleaved, "scaling": scaling}
    rotary = Rotary(Rope.model_validate(spec), 8)
    q, k = random(8), random(8, seed=1)

    def score(at: int, other: int) -> float:
        turned_q, turned_k = rotary(q.view(1, 1, 1, 8), at), rotary(k.view(1, 1, 1, 8), other)
        return (turned_q * turned_k).sum().item()

    assert score(start + distance, start) == pytest.approx(score(distance, 0), rel=1e-9, abs=1e-9)
    assert score(start + distance + 1, start) != pytest.approx(score(distance, 0), rel=1e-7)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_by_hand_and_the_channels_it_leaves(interleaved: bool) -> None:
    rotary = Rotary(Rope(theta=10.0, fraction=0.5, interleaved=interleaved), 8)
    x = random(1, 1, 6, 8)
    y = rotary(x, 2)
    for row in range(6):
        for i in range(2):
            angle = (row + 2) * 10.0 ** (-2 * i / 4)
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + 2)
            a, b = x[0, 0, row, first].item(), x[0, 0, row, second].item()
            turned = y[0, 0, row]
            assert turned[first].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle))
            assert turned[second].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle))
    assert torch.equal(y[..., 4:], x[..., 4:])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def test_a_stretched_rotation_scales_the_rotated_channels_alone() -> None:
    scaling = {"kind": "yarn", "factor": 10.0, "original_context": 32}
    rotary = Rotary(Rope.model_validate({"fraction": 0.5, "scaling": scaling}), 8)
    x = random(1, 1, 5, 8)
    y = rotary(x, 7)
    torch.testing.assert_close(y[..., :4].norm(dim=-1), x[..., :4].norm(dim=-1) * (0.1 * math.log(10) + 1))
    assert torch.equal(y[..., 4:], x[..., 4:])


def test_rotation_after_inference_mode_can_be_trained_through() -> None:
    rotary = Rotary(Rope(), 4)
    with torch.inference_mode():
        rotary(random(1, 1, 3, 4), 0)
    x = random(1, 1, 3, 4).requires_grad_()
    rotary(x, 0).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["kind"])
@pytest.mark.parametrize(("theta", "fraction"), [(10_000.0, 1.0), (500_000.0, 0.5)])
def test_frequencies_are_those_of_transformers(
    scaling: dict[str, Any], theta: float, fraction: float
) -> None:
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    llama = pytest.importorskip("transformers").LlamaConfig
    given = {
        NAMES.get(name, name): value for name, value in scaling.items() if name not in ("kind", "factors")
    }
    if scaling["kind"] == "longrope":
        lists = {"short_factor": scaling["factors"], "long_factor": [1.0] * 16}
        given = {"factor": 1.0, "original_max_position_embeddings": 64} | given | lists
    head_dim = int(32 / fraction)
    given |= {"rope_type": scaling["kind"], "rope_theta": theta, "partial_rotary_factor": fraction}
    config = llama(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=8192,
        rope_parameters=given,
    )
    truth, factor = utils.ROPE_INIT_FUNCTIONS[scaling["kind"]](config, torch.device("cpu"))
    rope = Rope.model_validate({"theta": theta, "fraction": fraction, "scaling": scaling})
    found = frequencies(rope, head_dim)
    assert found.dtype == torch.float64
    # transformers computes them in float32.
    torch.testing.assert_close(found, truth.double(), rtol=2e-6, atol=0)
    assert attention_factor(rope) == pytest.approx(factor, rel=1e-12)
    assert Rope.model_validate(rope.model_dump()) == rope


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"kind": "linear"}, "linear scaling needs factor"),
        ({"kind": "yarn", "factor": 2.0}, "yarn scaling needs original_context"),
        ({"kind": "longrope"}, "longrope scaling needs factors"),
        ({"kind": "longrope", "factors": [1.0]}, "needs attention_factor, or factor and original_context"),
        ({"kind": "longrope", "factors": [-1.0], "attention_factor": 1.0}, "factors must be greater than 0"),
        (
            {"kind": "linear", "factor": 2.0, "beta_fast": 3.0},
            "linear scaling has no beta_fast; it has factor",
        ),
        (
            {"kind": "llama3", "factor": 2.0, "original_context": 9, "low_freq_factor": 4.0},
            "low_freq_factor 4 must be below high_freq_factor 4",
        ),
        ({"kind": "dynamic", "factor": 2.0}, "Input should be 'linear', 'llama3', 'yarn' or 'longrope'"),
    ],
    ids=str,
)
def test_scalings_that_do_not_exist(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Rope.model_validate({"scaling": scaling})


def test_rotations_that_do_not_fit() -> None:
    with pytest.raises(ValidationError, match="yarn scaling needs a theta above 1, found 1"):
        Rope.model_validate({"theta": 1.0, "scaling": SCALINGS[3]})
    with pytest.raises(FieldError, match="rotates 3 of 6 channels a head; expected an even number"):
        Rope(fraction=0.5).check(6)
    with pytest.raises(FieldError, match="expected 4 factors, one a pair of channels, found 16"):
        Rope.model_validate({"scaling": SCALINGS[-1]}).check(8)


def test_frequencies_stay_on_the_cpu_whatever_a_model_is_built_on() -> None:
    with torch.device("meta"):
        rotary = Rotary(Rope(), 8)
    x_bhle = random(1, 2, 5, 8)
    torch.testing.assert_close(rotary(x_bhle, 0), Rotary(Rope(), 8)(x_bhle, 0))
