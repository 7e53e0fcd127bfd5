"""The Kimi delta attention layer written out, token by token, and its costs by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import inputs, layer_of, mixer_of

from archsearch.mixers.base import Surroundings
from archsearch.mixers.kda import KdaMixer
from archsearch.spec.errors import FieldError

FIELDS = {"heads": 3, "head_dim": 8, "gate_rank": 5}


@pytest.mark.parametrize("beta_scale", [1, 2])
@pytest.mark.parametrize("gate_rank", [5, "full"])
@pytest.mark.parametrize("decay_bound", [None, 2.5])
def test_layer_by_hand(beta_scale: int, gate_rank: int | str, decay_bound: float | None) -> None:
    fields = FIELDS | {"beta_scale": beta_scale, "gate_rank": gate_rank, "decay_bound": decay_bound}
    mixer = mixer_of("kda", fields | {"norm_eps": 1e-3})
    x, length = inputs(1, 7), 7
    with torch.no_grad():
        rank = 24 if gate_rank == "full" else 5
        qkv, f, z, b = (x[0] @ mixer.in_proj.weight.T).split([72, rank, rank, 3], dim=-1)
        if gate_rank != "full":
            f, z = f @ mixer.f_proj.weight.T, z @ mixer.g_proj.weight.T
        padded = torch.cat([torch.zeros(3, 72, dtype=x.dtype), qkv])
        conv = [(padded[t : t + 4].T * mixer.conv.weight).sum(1) for t in range(length)]
        q, k, v = F.silu(torch.stack(conv)).split(24, dim=-1)
        rows = []
        states = torch.zeros(3, 8, 8, dtype=x.dtype)
        for t in range(length):
            out = []
            for h in range(3):
                part = slice(8 * h, 8 * h + 8)
                q_h, k_h = (u[t, part] / (u[t, part].square().sum() + 1e-6).sqrt() for u in (q, k))
                rate, shifted = mixer.A_log[h].exp(), f[t, part] + mixer.dt_bias[part]
                if decay_bound is None:
                    decay = torch.exp(-rate * F.softplus(shifted))
                else:
                    decay = torch.exp(-decay_bound * torch.sigmoid(rate * shifted))
                beta = beta_scale * torch.sigmoid(b[t, h])
                decayed = decay[:, None] * states[h]
                states[h] = decayed + torch.outer(k_h, beta * (v[t, part] - k_h @ decayed))
                o = (q_h / 8**0.5) @ states[h]
                out.append(o * (o.square().mean() + 1e-3).rsqrt() * mixer.norm.weight)
            rows.append(torch.cat(out))
        y = torch.stack(rows) * torch.sigmoid(z)
        torch.testing.assert_close(mixer(x)[0], y @ mixer.out_proj.weight.T, rtol=1e-10, atol=1e-10)


def test_costs_by_hand() -> None:
    layer = layer_of("kda", FIELDS)
    # q, k and v 24 each; the decays' and the gate's rank 5 each; a strength a head.
    assert layer.in_width(64) == 3 * 24 + 2 * 5 + 3
    ranks = 2 * 5 * 24
    assert layer.params(64) == 64 * 85 + ranks + 72 * 4 + 24 + 3 + 8 + 24 * 64
    assert layer.params(64, project=False) == layer.params(64) - 24 * 64
    assert layer.flops(64, 100) == 2 * (64 * 85 + ranks + 24 * 64) + 2 * 72 * 4 + 7 * 3 * 8 * 8
    assert layer.state_bytes(64, 100, 2) == 3 * 72 * 2 + 3 * 8 * 8 * 4
    full = layer_of("kda", FIELDS | {"gate_rank": "full"})
    assert full.in_width(64) == 5 * 24 + 3
    assert full.params(64) == 64 * 123 + 72 * 4 + 24 + 3 + 8 + 24 * 64


def test_heads_and_rank_follow_the_widths() -> None:
    layer = layer_of("kda", {"head_dim": 128}, d_model=2304)
    assert (layer.heads, layer.gate_rank) == (18, 128)
    assert layer_of("kda", {}, d_model=8).heads == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dt_min": 0.2}, "dt_min 0.2 is above dt_max 0.1"),
        ({"A_init": [4, 2]}, r"found \[4, 2\]"),
        ({"A_init": [0, 0]}, r"found \[0, 0\]"),
    ],
)
def test_what_cannot_hold_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        layer_of("kda", fields)


def test_initial_step_sizes_and_decays_are_in_their_ranges() -> None:
    fields = {"heads": 64, "head_dim": 2, "dt_min": 0.01, "dt_max": 0.05, "A_init": [2, 3], "dt_floor": 0.02}
    mixer = KdaMixer(layer_of("kda", fields), Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    dt, A = F.softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    assert dt.min() == pytest.approx(0.02, rel=1e-4)
    assert 0.04 < dt.max() <= 0.05 * (1 + 1e-4)
    assert 2 * (1 - 1e-6) <= A.min() < 2.2
    assert 2.8 < A.max() <= 3 * (1 + 1e-6)


@pytest.mark.parametrize("bound", [None, 5.0])
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_extreme_inputs_stay_finite(size: float, bound: float | None) -> None:
    mixer = mixer_of("kda", FIELDS | {"beta_scale": 2, "decay_bound": bound}).float()
    x = (size * inputs(2, 100)).float().requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    for name, gradient in [("input", x.grad), *((n, p.grad) for n, p in mixer.named_parameters())]:
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


def test_a_bound_keeps_some_of_every_state() -> None:
    """With decay_bound 5 a token leaves at least exp(-5) of each channel that it does not overwrite."""
    mixer = mixer_of("kda", FIELDS | {"decay_bound": 5.0})
    with torch.no_grad():
        _, state = mixer.prefill(inputs(1, 9))
        mixer.A_log.fill_(20.0)
        mixer.dt_bias.fill_(1.0)
        mixer.in_proj.weight[:72] = 0
        _, after = mixer.step(inputs(1, 1)[:, 0], state._replace(conv_bjc=0 * state.conv_bjc))
    share = after.delta_bhkv / state.delta_bhkv
    assert share.min() >= 0.999 * torch.tensor(-5.0).exp()
