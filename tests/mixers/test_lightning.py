"""Lightning attention written out, token by token, and its costs by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import inputs, layer_of, mixer_of
from torch import Tensor

from archsearch.spec.errors import FieldError

FIELDS = {"heads": 4, "head_dim": 6, "decay_scale": 0.5}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "none": lambda x: x,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layer_by_hand(activation: str) -> None:
    mixer = mixer_of("lightning", FIELDS | {"activation": activation, "norm_eps": 1e-3})
    x, length = inputs(1, 9), 9
    with torch.no_grad():
        qkv, gate = (x[0] @ mixer.in_proj.weight.T).split([72, 24], dim=-1)
        qkv = ACTIVATIONS[activation](qkv).view(length, 4, 3, 6)
        states, rows = torch.zeros(4, 6, 6, dtype=x.dtype), []
        for t in range(length):
            out = []
            for h in range(4):
                q, k, v = qkv[t, h]
                decay = torch.exp(torch.tensor(-0.5 * 2 ** (-8 * (h + 1) / 4), dtype=x.dtype))
                states[h] = decay * states[h] + torch.outer(v, k)
                out.append(states[h] @ q)
            rows.append(torch.cat(out))
        o = torch.stack(rows)
        o = o * (o.square().mean(-1, keepdim=True) + 1e-3).rsqrt() * mixer.norm.weight
        truth = (o * torch.sigmoid(gate)) @ mixer.out_proj.weight.T
        torch.testing.assert_close(mixer(x)[0], truth, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mixer.prefill(x)[1].kv_bhee[0], states, rtol=1e-10, atol=1e-10)


def test_costs_by_hand() -> None:
    layer = layer_of("lightning", FIELDS)
    assert layer.params(64) == 64 * 96 + 24 + 24 * 64
    assert layer.params(64, project=False) == 64 * 96 + 24
    assert layer.flops(64, 100) == 2 * (64 * 96 + 24 * 64) + 5 * 4 * 6 * 6
    assert layer.state_bytes(64, 100, 2) == 4 * 6 * 6 * 4
    assert layer.state_bytes(64, 100, 8) == 4 * 6 * 6 * 8


def test_heads_follow_the_width() -> None:
    layer = layer_of("lightning", {}, d_model=256)
    assert (layer.heads, layer.head_dim) == (4, 64)
    assert layer_of("lightning", {"heads": 8}, d_model=256).head_dim == 32


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(FieldError, match="3 heads do not divide d_model 64; give head_dim too"):
        layer_of("lightning", {"heads": 3})


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_extreme_decays_stay_finite(scale: float) -> None:
    fields: dict[str, Any] = {"heads": 4, "decay_scale": scale}
    mixer, x = mixer_of("lightning", fields).float(), inputs(2, 200).float().requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    for gradient in (x.grad, *(p.grad for p in mixer.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()
