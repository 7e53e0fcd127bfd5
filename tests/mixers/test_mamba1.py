"""The Mamba-1 layer written out, number by number, from the paper's equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import inputs, layer_of, mixer_of

from archsearch.mixers.base import Surroundings
from archsearch.mixers.mamba1 import Mamba1Mixer
from archsearch.mixers.selective_scan import selective_scan_reference
from mixers.serving import served


def normed(value: torch.Tensor, kind: str, weight: torch.Tensor | None) -> torch.Tensor:
    if kind == "none":
        return value
    value = value / (value.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    return value if weight is None else value * weight


@pytest.mark.parametrize("inner_norm", ["none", "rms", "weighted"])
@pytest.mark.parametrize("heads", [1, 2])
def test_layer_by_hand(inner_norm: str, heads: int) -> None:
    fields = {"expand": 0.25, "d_state": 3, "inner_norm": inner_norm, "inner_norm_eps": 1e-3, "heads": heads}
    mixer, x_bld = mixer_of("mamba1", fields), inputs(1, 7)
    inner, rank, n = 16, 4, 3
    with torch.no_grad():
        x, z = (x_bld[0] @ mixer.in_proj.weight.T).split([inner, inner], dim=-1)
        padded = torch.cat([x.new_zeros(3, inner), x])
        conv = [(padded[t : t + 4].T * mixer.conv.weight).sum(1) + mixer.conv.bias for t in range(7)]
        u = F.silu(torch.stack(conv))
        y, norms = torch.zeros_like(u), (mixer.dt_norm, mixer.B_norm, mixer.C_norm)
        for i in range(inner):
            head = i // (inner // heads)
            own = slice(head * inner // heads, (head + 1) * inner // heads)
            rows = slice(head * (rank + 2 * n), (head + 1) * (rank + 2 * n))
            dt, B, C = (
                normed(t, inner_norm, getattr(norm, "weight", None))
                for t, norm in zip(
                    (u[:, own] @ mixer.x_proj.weight[rows].T).split([rank, n, n], dim=-1), norms, strict=True
                )
            )
            dt = F.softplus(dt @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
            for j in range(n):
                state = u.new_zeros(())
                for t in range(7):
                    decay = torch.exp(-dt[t, i] * mixer.A_log[i, j].exp())
                    state = decay * state + dt[t, i] * B[t, j] * u[t, i]
                    y[t, i] += state * C[t, j]
        y = (y + mixer.D * u) * F.silu(z)
        torch.testing.assert_close(mixer(x_bld)[0], y @ mixer.out_proj.weight.T, rtol=1e-10, atol=1e-10)


def kernel_by_convention(
    u_bil: torch.Tensor,
    delta_bil: torch.Tensor,
    A_in: torch.Tensor,
    B_bnl: torch.Tensor,
    C_bnl: torch.Tensor,
    *,
    D: torch.Tensor,
    delta_bias: torch.Tensor,
    delta_softplus: bool,
    return_last_state: bool,
    z: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    assert delta_softplus
    assert return_last_state
    if z is not None:
        assert z.dtype == u_bil.dtype
        given = (u_bil, delta_bil, A_in, B_bnl, C_bnl)
        plain = {"delta_softplus": delta_softplus, "return_last_state": return_last_state}
        y_bil, state_bin = kernel_by_convention(*given, D=D, delta_bias=delta_bias, **plain)
        return y_bil * F.silu(z), state_bin
    assert u_bil.dtype == delta_bil.dtype == B_bnl.dtype == C_bnl.dtype
    assert A_in.dtype == D.dtype == delta_bias.dtype == torch.float32
    if B_bnl.ndim == 4:  # by groups of channels (batch, groups, n, length)
        whole = {"delta_softplus": delta_softplus, "return_last_state": return_last_state}
        parts = [
            kernel_by_convention(u, delta, A, B, C, D=D_i, delta_bias=bias, **whole)
            for u, delta, A, B, C, D_i, bias in zip(
                *(t.chunk(B_bnl.shape[1], dim) for t, dim in ((u_bil, 1), (delta_bil, 1), (A_in, 0))),
                *(t.unbind(1) for t in (B_bnl, C_bnl)),
                *(t.chunk(B_bnl.shape[1]) for t in (D, delta_bias)),
                strict=True,
            )
        ]
        return torch.cat([y for y, _ in parts], 1), torch.cat([state for _, state in parts], 1)
    u_bli, delta_bli, B_bln, C_bln = (t.mT.float() for t in (u_bil, delta_bil, B_bnl, C_bnl))
    y_bli, state_bin = selective_scan_reference(u_bli, F.softplus(delta_bli + delta_bias), A_in, B_bln, C_bln)
    return (y_bli + D * u_bli).to(u_bil.dtype).mT, state_bin


@pytest.mark.parametrize("heads", [1, 4])
def test_the_cuda_kernel_is_called_by_its_convention(heads: int) -> None:
    mixer, x_bld = mixer_of("mamba1", {"d_state": 3, "heads": heads}).float(), inputs(2, 20).float()
    with torch.no_grad():
        y_bld, state = mixer.prefill(x_bld)
        mixer.scan_kernel = served("selective_scan", kernel_by_convention)
        kernel_bld, kernel_state = mixer.prefill(x_bld)
    torch.testing.assert_close(kernel_bld, y_bld)
    torch.testing.assert_close(kernel_state, state)


def fresh(**fields: Any) -> Mamba1Mixer:
    mixer = Mamba1Mixer(layer_of("mamba1", fields), Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    return mixer


def test_initial_weights_are_in_their_ranges() -> None:
    mixer = fresh(expand=16, d_state=4, dt_min=0.01, dt_max=0.05)
    dt = F.softplus(mixer.dt_proj.bias.detach())
    assert dt.min() >= 0.01 * (1 - 1e-4)
    assert dt.max() <= 0.05 * (1 + 1e-4)
    # Log-uniform: half of them lie below the geometric mean.
    assert 0.4 < (dt < (0.01 * 0.05) ** 0.5).float().mean() < 0.6
    torch.testing.assert_close(mixer.A_log.detach().exp(), torch.arange(1.0, 5.0).expand(1024, 4))
    weight = mixer.dt_proj.weight.detach()
    assert 0.45 < weight.max() <= 0.5
    assert -0.5 <= weight.min() < -0.45
    assert (fresh(dt_init="constant").dt_proj.weight == 0.5).all()


def test_the_floor_lifts_small_step_sizes() -> None:
    bias = fresh(dt_min=1e-6, dt_max=1e-5, dt_floor=0.02).dt_proj.bias.detach()
    torch.testing.assert_close(F.softplus(bias), torch.full((128,), 0.02))


def test_an_eps_that_norms_nothing_makes_no_other_layer() -> None:
    assert layer_of("mamba1", {"inner_norm_eps": 0.1}) == layer_of("mamba1", {})
    assert layer_of("mamba1", {"inner_norm_eps": 0.1, "inner_norm": "rms"}).inner_norm_eps == 0.1


def test_the_eps_of_inner_norms_is_the_models_unless_given() -> None:
    layer = layer_of("mamba1", {"inner_norm": "weighted"})
    assert Mamba1Mixer(layer, Surroundings(64, eps=0.25)).B_norm.eps == 0.25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expand": 0.01}, "is not a whole number"),
        ({"dt_min": 1}, "dt_min 1 is above dt_max 0.1"),
        ({"heads": 3}, "3 heads do not divide the inner width 128"),
    ],
    ids=str,
)
def test_fields_that_cannot_hold(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_of("mamba1", fields)
