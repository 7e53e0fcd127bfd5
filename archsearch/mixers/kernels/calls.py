"""How each CUDA kernel is called: from the shapes and conventions of this package to those of the kernel.

The first argument is always the kernel itself, so that whatever keeps its convention can be put there.

Shape suffixes: b batch, l length, t all tokens of all sequences, x any heads, e head_dim of attention,
c channels, k kernel width, j the convolution's earlier tokens, h heads, p channels a head, g groups, n state
size, i inner width, w width of an input projection, d d_model, v vocabulary, f pairs of rotated channels,
u both halves of a gated projection.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

CHUNK = 256
"""Tokens a chunk of Mamba-2's kernels: what the package's own layers use."""


def attention(
    kernel: Function,
    q_bxle: Tensor,
    k_bxle: Tensor,
    v_bxle: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention; the last `window` tokens where given. Fewer key heads than query heads are shared."""
    q, k, v = (t.transpose(1, 2) for t in (q_bxle, k_bxle, v_bxle))
    reach = (-1, -1) if window is None else (window - 1, 0)
    y = kernel(q, k, v, softmax_scale=scale, causal=True, window_size=reach, softcap=softcap or 0.0)
    return y.transpose(1, 2)


def attention_by_torch(
    kernel: Function, q_bxle: Tensor, k_bxle: Tensor, v_bxle: Tensor, *, scale: float, window: int = 1 << 30
) -> Tensor:
    """The same by torch's flash attention, which is of use for its window."""
    q, k, v = (t.transpose(1, 2) for t in (q_bxle, k_bxle, v_bxle))
    return kernel(q, k, v, scale, min(window, q.shape[1])).transpose(1, 2)


def packed_attention(
    kernel: Function,
    q_txe: Tensor,
    k_txe: Tensor,
    v_txe: Tensor,
    *,
    starts: Tensor,
    longest: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention within sequences that lie one after another. starts: int32, where each one starts and
    the last one ends; longest: tokens of the longest one."""
    reach = (-1, -1) if window is None else (window - 1, 0)
    more = {"softmax_scale": scale, "causal": True, "window_size": reach, "softcap": softcap or 0.0}
    return kernel(q_txe, k_txe, v_txe, starts, starts, longest, longest, **more)


def packed_attention_by_torch(
    kernel: Function,
    q_txe: Tensor,
    k_txe: Tensor,
    v_txe: Tensor,
    *,
    starts: Tensor,
    longest: int,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """The same; torch's function is causal where its window says so, and shares heads in later releases."""
    more: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    shared = q_txe.shape[1] // k_txe.shape[1]
    if shared > 1 and "enable_gqa" in _parameters(kernel):
        more["enable_gqa"] = True
    elif shared > 1:
        k_txe, v_txe = (t.repeat_interleave(shared, dim=1) for t in (k_txe, v_txe))
    return kernel(q_txe, k_txe, v_txe, starts, starts, longest, longest, **more)


def cached_attention(
    kernel: Function,
    q_bxe: Tensor,
    k_bxe: Tensor,
    v_bxe: Tensor,
    place_5: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sinks_x: Tensor | None = None,
) -> Tensor:
    """Attention of one token to a cache, into which its key and value are written. place: int64, where the
    cache's keys and values (b, x, capacity, e) lie, their capacity, how many tokens fill them, and the first
    of these that is seen."""
    return kernel(q_bxe, k_bxe, v_bxe, place_5, scale, softcap, sinks_x)


def short_conv(
    kernel: Function,
    x_blc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    *,
    silu: bool,
    initial_bjc: Tensor | None = None,
    documents_bl: Tensor | None = None,
) -> Tensor:
    """The causal depthwise convolution. initial: the inputs before the first. documents: an int32 number a
    token; tokens see those of their own number alone."""
    # The kernel takes (b, c, l) with any strides; transposing keeps the channels contiguous.
    return kernel(
        _rows_of_eight(x_blc).mT,
        weight_ck,
        bias_c,
        initial_states=None if initial_bjc is None else initial_bjc.mT,
        seq_idx=documents_bl,
        activation="silu" if silu else None,
    ).mT


def short_conv_step(
    kernel: Function,
    x_bc: Tensor,
    state_bjc: Tensor,
    weight_ck: Tensor,
    bias_c: Tensor | None,
    *,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """One more token, and the inputs that the next one needs."""
    return kernel(x_bc, state_bjc, weight_ck, bias_c, silu)


def ssd(
    kernel: Function,
    x_blhp: Tensor,
    dt_blh: Tensor,
    A_h: Tensor,
    B_blgn: Tensor,
    C_blgn: Tensor,
    D_h: Tensor,
    *,
    initial_bhpn: Tensor | None = None,
    documents_bl: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Mamba-2's scan, with the skip D x, and the last state. dt is positive, A negative."""
    y_blhp, last_bhpn = kernel(
        x_blhp,
        dt_blh,
        A_h,
        B_blgn,
        C_blgn,
        chunk_size=chunk,
        D=D_h.float(),
        initial_states=initial_bhpn,
        seq_idx=documents_bl,
        return_final_states=True,
    )
    return y_blhp, last_bhpn.float()


def ssd_step(
    kernel: Function,
    x_bhp: Tensor,
    dt_bh: Tensor,
    dt_bias_h: Tensor,
    A_log_h: Tensor,
    B_bgn: Tensor,
    C_bgn: Tensor,
    D_h: Tensor,
    state_bhpn: Tensor,
    *,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """One token of the same; dt without its bias and softplus, A as its logarithm. in_place: the new state
    may take the old one's memory."""
    return kernel(x_bhp, dt_bh, dt_bias_h, A_log_h, B_bgn, C_bgn, D_h, state_bhpn, *dt_limit, in_place)


def mamba2(
    kernel: Function,
    projected_blw: Tensor,
    *,
    conv: tuple[Tensor, Tensor | None],
    dt_bias_h: Tensor,
    A_h: Tensor,
    D_h: Tensor,
    norm: tuple[Tensor | None, float],
    out: tuple[Tensor, Tensor | None],
    head_dim: int,
    groups: int,
    norm_first: bool,
    dt_limit: tuple[float, float],
    documents_bl: Tensor | None = None,
) -> Tensor:
    """All of Mamba-2 after its input projection (..., z x B C dt). conv, out: weight and bias; norm: weight
    and eps, over groups of channels that are the heads' groups."""
    return kernel(
        projected_blw,
        *conv,
        dt_bias_h,
        A_h,
        D_h,
        chunk_size=CHUNK,
        seq_idx=documents_bl,
        dt_limit=dt_limit,
        activation="silu",
        rmsnorm_weight=norm[0],
        rmsnorm_eps=norm[1],
        outproj_weight=out[0],
        outproj_bias=out[1],
        headdim=head_dim,
        ngroups=groups,
        norm_before_gate=norm_first,
    )


def selective_scan(
    kernel: Function,
    u_bli: Tensor,
    dt_bli: Tensor,
    A_in: Tensor,
    B_blhn: Tensor,
    C_blhn: Tensor,
    D_i: Tensor,
    dt_bias_i: Tensor,
    z_bli: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba-1's scan, with the skip D u and times SiLU(z) where given, and the last state, through which no
    gradient comes. dt is still without its bias and softplus."""
    # The kernel wants time last and one dtype for all that varies by token.
    dt, B, C = (t.to(u_bli.dtype).movedim(1, -1) for t in (dt_bli, B_blhn, C_blhn))
    y_bil, state_bin = kernel(
        u_bli.mT,
        dt,
        A_in,
        B.squeeze(1),
        C.squeeze(1),
        D=D_i.float(),
        z=None if z_bli is None else z_bli.to(u_bli.dtype).mT,
        delta_bias=dt_bias_i.float(),
        delta_softplus=True,
        return_last_state=True,
    )
    return y_bil.mT, state_bin.float()


def selective_scan_step(
    kernel: Function,
    u_bi: Tensor,
    dt_bi: Tensor,
    A_in: Tensor,
    B_bhn: Tensor,
    C_bhn: Tensor,
    D_i: Tensor,
    state_bin: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token of the same; dt positive here."""
    heads = B_bhn.shape[1]
    state_bin = state_bin.clone()

    def by_head(t: Tensor, axis: int) -> Tensor:
        return t.unflatten(axis, (heads, -1))

    y_bhp = kernel(
        by_head(state_bin, 1),
        by_head(u_bi, 1),
        by_head(dt_bi, 1),
        by_head(A_in, 0),
        B_bhn,
        C_bhn,
        D=by_head(D_i, 0),
        dt_bias=by_head(torch.zeros_like(A_in[:, 0]), 0),
    )
    return y_bhp.flatten(1), state_bin


def norm(
    kernel: Function,
    x_d: Tensor,
    weight_d: Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
    added_d: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """RMS norm of x + added in `dtype`, and that sum, to go on from; leading axes are free."""
    return kernel(x_d, weight_d, eps, dtype, added_d)


def gated_norm(
    kernel: Function,
    x_d: Tensor,
    gate_d: Tensor,
    weight_d: Tensor,
    *,
    eps: float,
    groups: int,
    norm_first: bool,
) -> Tensor:
    """norm(x) * SiLU(gate), or norm(x * SiLU(gate)), over groups of channels; without a backward pass."""
    return kernel(x_d, gate_d, weight_d, eps, groups, norm_first)


def rope(
    kernel: Function, x_bhle: Tensor, cos_lf: Tensor, sin_lf: Tensor, *, interleaved: bool = False
) -> Tensor:
    """Pairs of channels of each head turned by the angles whose float32 cosines and sines are given."""
    return kernel(x_bhle, cos_lf, sin_lf, interleaved)


def swiglu(kernel: Function, up_u: Tensor) -> Tensor:
    """SiLU of the first half of the channels, times the second."""
    return kernel(up_u)


def cross_entropy(kernel: Function, logits_tv: Tensor, targets_t: Tensor, *, ignore: int) -> Tensor:
    """The mean over the tokens whose target is not `ignore`."""
    return kernel(logits_tv, targets_t, ignore)


def _rows_of_eight(x_blc: Tensor) -> Tensor:
    """x itself where its rows start at multiples of 8 numbers, as the convolution asks; else a copy."""
    return x_blc if all(stride % 8 == 0 for stride in x_blc.stride()[:2]) else x_blc.contiguous()


@cache
def _parameters(function: Function) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
