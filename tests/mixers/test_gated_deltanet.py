"""The gated DeltaNet layer written out, token by token, and its costs by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contract.building import inputs, layer_of, mixer_of

from archsearch.mixers.base import Surroundings
from archsearch.mixers.gated_deltanet import GatedDeltaNetMixer
from archsearch.spec.errors import FieldError

FIELDS = {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6}


@pytest.mark.parametrize("beta_scale", [1, 2])
@pytest.mark.parametrize("gate", [True, False])
def test_layer_by_hand(beta_scale: int, gate: bool) -> None:
    mixer = mixer_of("gated_deltanet", FIELDS | {"beta_scale": beta_scale, "gate": gate, "norm_eps": 1e-3})
    x, length = inputs(1, 7), 7
    with torch.no_grad():
        widths = [56, 24 if gate else 0, 4, 4]
        qkv, z, b, a = (x[0] @ mixer.in_proj.weight.T).split(widths, dim=-1)
        padded = torch.cat([torch.zeros(3, 56, dtype=x.dtype), qkv])
        conv = [(padded[t : t + 4].T * mixer.conv.weight).sum(1) for t in range(length)]
        q, k, v = F.silu(torch.stack(conv)).split([16, 16, 24], dim=-1)
        rows = []
        states = torch.zeros(4, 8, 6, dtype=x.dtype)
        for t in range(length):
            out = []
            for h in range(4):
                q_h, k_h = (part[t].view(2, 8)[h // 2] for part in (q, k))
                q_h, k_h = (u / (u.square().sum() + 1e-6).sqrt() for u in (q_h, k_h))
                decay = torch.exp(-mixer.A_log[h].exp() * F.softplus(a[t, h] + mixer.dt_bias[h]))
                beta = beta_scale * torch.sigmoid(b[t, h])
                decayed = decay * states[h]
                states[h] = decayed + torch.outer(k_h, beta * (v[t].view(4, 6)[h] - k_h @ decayed))
                o = (q_h / 8**0.5) @ states[h]
                out.append(o * (o.square().mean() + 1e-3).rsqrt() * mixer.norm.weight)
            rows.append(torch.cat(out))
        y = torch.stack(rows) * (F.silu(z) if gate else 1)
        torch.testing.assert_close(mixer(x)[0], y @ mixer.out_proj.weight.T, rtol=1e-10, atol=1e-10)


def test_costs_by_hand() -> None:
    layer = layer_of("gated_deltanet", FIELDS)
    # q 16, k 16, v 24 pass the convolution; z 24, b 4, a 4.
    assert layer.in_width(64) == 88
    assert layer.params(64) == 64 * 88 + 56 * 4 + 4 + 4 + 6 + 24 * 64
    assert layer.params(64, project=False) == layer.params(64) - 24 * 64
    assert layer.flops(64, 100) == 2 * 64 * 88 + 2 * 56 * 4 + 7 * 4 * 8 * 6 + 2 * 24 * 64
    assert layer.state_bytes(64, 100, 2) == 3 * 56 * 2 + 4 * 8 * 6 * 4
    assert layer_of("gated_deltanet", FIELDS | {"gate": False}).in_width(64) == 64


def test_heads_follow_the_width() -> None:
    layer = layer_of("gated_deltanet", {}, d_model=2048)
    assert (layer.key_heads, layer.value_heads) == (32, 64)
    layer = layer_of("gated_deltanet", {"key_dim": 128, "value_dim": 128}, d_model=2048)
    assert (layer.key_heads, layer.value_heads) == (16, 32)
    assert layer_of("gated_deltanet", {"key_heads": 3}).value_heads == 6
    assert layer_of("gated_deltanet", {}, d_model=8).key_heads == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key_heads": 2, "value_heads": 3}, "3 value_heads are not a multiple of 2 key_heads"),
        ({"dt_min": 0.2}, "dt_min 0.2 is above dt_max 0.1"),
        ({"A_init": [4, 2]}, r"found \[4, 2\]"),
        ({"A_init": [0, 0]}, r"found \[0, 0\]"),
    ],
)
def test_what_cannot_hold_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        layer_of("gated_deltanet", fields)


def test_initial_step_sizes_and_decays_are_in_their_ranges() -> None:
    fields = {"key_heads": 64, "key_dim": 1, "value_dim": 1, "dt_min": 0.01, "dt_max": 0.05, "A_init": [2, 3]}
    mixer = GatedDeltaNetMixer(layer_of("gated_deltanet", fields | {"dt_floor": 0.02}), Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    dt, A = F.softplus(mixer.dt_bias.detach()), mixer.A_log.detach().exp()
    assert dt.min() == pytest.approx(0.02, rel=1e-4)
    assert 0.04 < dt.max() <= 0.05 * (1 + 1e-4)
    assert 2 * (1 - 1e-6) <= A.min() < 2.2
    assert 2.8 < A.max() <= 3 * (1 + 1e-6)


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_extreme_inputs_stay_finite(size: float) -> None:
    mixer = mixer_of("gated_deltanet", FIELDS | {"beta_scale": 2}).float()
    x = (size * inputs(2, 100)).float().requires_grad_()
    y = mixer(x)
    y.sum().backward()
    assert y.isfinite().all()
    for name, gradient in [("input", x.grad), *((n, p.grad) for n, p in mixer.named_parameters())]:
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


def test_decay_forgets_and_without_it_a_value_stays() -> None:
    mixer = mixer_of("gated_deltanet", FIELDS)
    with torch.no_grad():
        _, state = mixer.prefill(inputs(1, 9))
        mixer.A_log.fill_(20.0)
        _, after = mixer.step(inputs(1, 1)[:, 0], state)
        written = torch.linalg.matrix_rank(after.delta_bhkv)
        assert (written <= 1).all()
        mixer.A_log.fill_(-40.0)
        _, kept = mixer.step(torch.zeros(1, 64, dtype=torch.float64), state)
        assert torch.linalg.matrix_rank(kept.delta_bhkv).min() >= 5
