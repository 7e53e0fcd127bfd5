"""The channel mixer and its activations, against formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from contract.building import inputs, layer_of, mixer_of

from archsearch.mixers.mlp import ACTIVATIONS
from archsearch.spec.layers.mlp import GATED


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: float) -> float:
    return x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def relu(x: float) -> float:
    return max(x, 0.0)


BY_HAND = {
    "silu": silu,
    "swiglu": silu,
    "gelu": gelu,
    "geglu": gelu,
    "gelu_tanh": gelu_tanh,
    "geglu_tanh": gelu_tanh,
    "relu": relu,
    "reglu": relu,
    "relu2": lambda x: relu(x) ** 2,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_hand(name: str) -> None:
    for x in (-30.0, -1.5, 0.0, 0.3, 4.0):
        found = ACTIVATIONS[name](torch.tensor(x, dtype=torch.float64)).item()
        assert found == pytest.approx(BY_HAND[name](x), abs=1e-12)


@pytest.mark.parametrize("gate_scale", [1.0, 0.3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_by_hand(name: str, gate_scale: float) -> None:
    fields = {"activation": name, "hidden": 5, "bias": True, "gate_scale": gate_scale}
    mixer, x = mixer_of("mlp", fields), inputs(1, 3)
    with torch.no_grad():
        up = x @ mixer.up_proj.weight.T + mixer.up_proj.bias
        gate, value = (up[..., :5], up[..., 5:]) if name in GATED else (up, torch.ones_like(up))
        inner = (gate_scale * gate).apply_(BY_HAND[name]) * value
        truth = inner @ mixer.down_proj.weight.T + mixer.down_proj.bias
        torch.testing.assert_close(mixer(x), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gated_have_two_parts_and_are_narrower_by_default(name: str) -> None:
    layer = layer_of("mlp", {"activation": name})
    parts, hidden = (2, 176) if name in GATED else (1, 256)
    assert layer.inner_width(64) == hidden
    assert layer.projections(64) == {"up_proj": (parts * hidden,)}
    assert layer.params(64) == 64 * hidden * (parts + 1)


def test_further_inputs_widen_the_up_projection_alone() -> None:
    layer = layer_of("mlp", {"hidden": 7, "inputs": ["embedding"]})
    mixer = mixer_of("mlp", {"hidden": 7, "inputs": ["embedding"]})
    assert mixer.up_proj.weight.shape == (14, 128)
    assert mixer(torch.cat([inputs(1, 3), inputs(1, 3, seed=1)], -1)).shape == (1, 3, 64)
    assert layer.params(64) == 128 * 14 + 7 * 64
    assert layer.flops(64, 10) == 2 * (128 * 14 + 7 * 64)
