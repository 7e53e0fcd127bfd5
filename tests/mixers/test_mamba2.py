"""The Mamba-2 layer written out, token by token, from the paper's equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import inputs, layer_of, mixer_of

from archsearch.mixers.base import Surroundings
from archsearch.mixers.mamba2 import Mamba2Mixer
from archsearch.spec.errors import FieldError


@pytest.mark.parametrize("gated_norm", ["after", "before", "none"])
@pytest.mark.parametrize("dt_limit", [[0, float("inf")], [0.02, 0.04]])
@pytest.mark.parametrize("norm_groups", [None, 4])
def test_layer_by_hand(gated_norm: str, dt_limit: list[float], norm_groups: int | None) -> None:
    fields: dict[str, Any] = {"heads": 8, "head_dim": 16, "groups": 2, "d_state": 3, "norm_eps": 1e-3}
    fields |= {"gated_norm": gated_norm, "dt_limit": dt_limit, "norm_groups": norm_groups}
    mixer, x = mixer_of("mamba2", fields | {"multipliers": [0.5, 2, 0.3, 1.5, 3]}), inputs(1, 7)
    inner, heads, groups, n = 128, 8, 2, 3
    with torch.no_grad():
        parts = (x[0] @ mixer.in_proj.weight.T).split([inner, inner, groups * n, groups * n, heads], dim=-1)
        z, x_in, B_in, C_in, dt = (f * part for f, part in zip([0.5, 2, 0.3, 1.5, 3], parts, strict=True))
        xbc = torch.cat([x_in, B_in, C_in], dim=-1)
        padded = torch.cat([torch.zeros(3, xbc.shape[1], dtype=xbc.dtype), xbc])
        conv = [(padded[t : t + 4].T * mixer.conv.weight).sum(1) + mixer.conv.bias for t in range(7)]
        xs, B, C = F.silu(torch.stack(conv)).split([inner, groups * n, groups * n], dim=-1)
        dt = F.softplus(dt + mixer.dt_bias).clamp(*dt_limit)
        state = torch.zeros(heads, 16, n, dtype=x.dtype)
        rows = []
        for t in range(7):
            out = torch.zeros(heads, 16, dtype=x.dtype)
            for h in range(heads):
                group = h // (heads // groups)
                x_h, B_g, C_g = xs[t].view(heads, 16)[h], B[t].view(2, n)[group], C[t].view(2, n)[group]
                decay = torch.exp(-dt[t, h] * mixer.A_log[h].exp())
                state[h] = decay * state[h] + dt[t, h] * torch.outer(x_h, B_g)
                out[h] = state[h] @ C_g + mixer.D[h] * x_h
            rows.append(out.flatten())
        y, gate = torch.stack(rows), F.silu(z)

        def grouped_norm(value: torch.Tensor) -> torch.Tensor:
            parts = value.unflatten(-1, (norm_groups or groups, -1))
            return (parts * (parts.square().mean(-1, keepdim=True) + 1e-3).rsqrt()).flatten(-2)

        if gated_norm == "after":
            y = grouped_norm(y * gate) * mixer.norm.weight
        elif gated_norm == "before":
            y = grouped_norm(y) * mixer.norm.weight * gate
        else:
            y = y * gate
        torch.testing.assert_close(mixer(x)[0], y @ mixer.out_proj.weight.T, rtol=1e-10, atol=1e-10)


def test_initial_step_sizes_and_decays_are_in_their_ranges() -> None:
    layer = layer_of("mamba2", {"head_dim": 1, "dt_min": 0.01, "dt_max": 0.05, "A_init": [2, 3]})
    mixer = Mamba2Mixer(layer, Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    dt = F.softplus(mixer.dt_bias.detach())
    assert dt.min() >= 0.01 * (1 - 1e-4)
    assert dt.max() <= 0.05 * (1 + 1e-4)
    # Log-uniform: half of them lie below the geometric mean.
    assert 0.3 < (dt < (0.01 * 0.05) ** 0.5).float().mean() < 0.7
    A = mixer.A_log.detach().exp()
    assert A.min() >= 2 * (1 - 1e-6)
    assert A.max() <= 3 * (1 + 1e-6)
    assert (mixer.D == 1).all()


def test_the_floor_lifts_small_step_sizes() -> None:
    layer = layer_of("mamba2", {"head_dim": 16, "dt_min": 1e-6, "dt_max": 1e-5, "dt_floor": 0.02})
    mixer = Mamba2Mixer(layer, Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    torch.testing.assert_close(F.softplus(mixer.dt_bias.detach()), torch.full((8,), 0.02))


def test_heads_say_what_expand_would() -> None:
    assert layer_of("mamba2", {"heads": 4, "head_dim": 32}) == layer_of("mamba2", {"head_dim": 32})
    assert layer_of("mamba2", {"heads": 3, "head_dim": 7}).inner_width(64) == 21
    assert layer_of("mamba2", {"heads": 3, "head_dim": 7}).head_count(64) == 3


def test_what_no_norm_reads_makes_no_other_layer() -> None:
    bare = layer_of("mamba2", {"gated_norm": "none"})
    assert layer_of("mamba2", {"gated_norm": "none", "norm_groups": 4, "norm_eps": 0.1}) == bare
    assert layer_of("mamba2", {"norm_groups": 1}) == layer_of("mamba2", {})
    assert layer_of("mamba2", {"norm_groups": 2}) != layer_of("mamba2", {})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 2, "expand": 2}, "heads and expand say the same thing; give one of them"),
        ({"heads": 3, "head_dim": 8, "groups": 2}, "2 groups do not divide 3 heads"),
        ({"norm_groups": 3}, "3 norm_groups do not divide the inner width 128"),
    ],
)
def test_fields_that_cannot_hold(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FieldError, match=message):
        layer_of("mamba2", fields)
