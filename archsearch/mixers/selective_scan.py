"""The selective scan of Mamba-1 (arXiv 2312.00752).

S_t = exp(dt_t A) S_{t-1} + dt_t u_t B_t, and y_t = S_t C_t, a channel at a time: A differs by channel and by
number of the state, so that no matmul computes it.

Shape suffixes: b batch, l length, i channels, n state size, k tokens of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from archsearch.mixers.blocks import LOG2_E

BLOCK = 16
"""Tokens a block: enough that the states kept weigh little, few enough that a block stays in cache."""


def selective_scan_reference(
    u_bli: Tensor, dt_bli: Tensor, A_in: Tensor, B_bln: Tensor, C_bln: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, token by token: the truth that faster paths are held against.

    A_in is negative, dt_bli positive. Returns y (batch, length, channels) and the last state
    (batch, channels, state).
    """
    state_bin = u_bli.new_zeros(u_bli.shape[0], *A_in.shape)
    ys = []
    for t in range(u_bli.shape[1]):
        y_bi, state_bin = selective_scan_step(
            u_bli[:, t], dt_bli[:, t], A_in, B_bln[:, t], C_bln[:, t], state_bin
        )
        ys.append(y_bi)
    return torch.stack(ys, dim=1), state_bin


def selective_scan_step(
    u_bi: Tensor, dt_bi: Tensor, A_in: Tensor, B_bn: Tensor, C_bn: Tensor, state_bin: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence."""
    decay_bin = (dt_bi[..., None] * A_in).exp()
    state_bin = decay_bin * state_bin + (dt_bi * u_bi)[..., None] * B_bn[:, None]
    # Not a matmul: autocast would take it in half precision.
    return (state_bin * C_bn[:, None]).sum(-1), state_bin


@torch.compiler.disable(reason="its backward pass is its own, and it writes into buffers")
def selective_scan(
    u_bli: Tensor, dt_bli: Tensor, A_in: Tensor, B_bln: Tensor, C_bln: Tensor, *, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The same function in blocks of tokens whose states stay in cache; all tensors of one dtype.

    Any length. Differentiable once. Memory: no more than a block's states at a time, and for the backward
    pass one state a block.
    """
    return _BlockedScan.apply(u_bli, dt_bli, A_in, B_bln, C_bln, min(block, u_bli.shape[1]))


class _BlockedScan(torch.autograd.Function):
    """The recurrence step by step, what surrounds it a block at a time, with a backward pass of its own.

    Time is the first axis and channels the last, so that a step is one contiguous in-place operation.
    Autograd would keep decays and states of every token, n times the size of the inputs; here the forward
    pass keeps the states at which blocks start, and the backward pass computes each block's again.

    With G_t the gradient of S_t, G_t = dy_t C_t + exp(dt_{t+1} A) G_{t+1}, and the gradient of the exponent
    dt_t A is E_t = G_t exp(dt_t A) S_{t-1}. No quotient of decays is formed: over some hundred tokens those
    overflow.
    """

    @staticmethod
    def forward(
        ctx: Any, u_bli: Tensor, dt_bli: Tensor, A_in: Tensor, B_bln: Tensor, C_bln: Tensor, block: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dt, v, B, C = (_time_first(t) for t in (dt_bli, dt_bli * u_bli, B_bln, C_bln))
        A_ni = A_in.mT.contiguous()
        spans = _spans(len(dt), block)
        decay, states = _buffers(dt, A_ni, block)
        starts = dt.new_zeros(len(spans) + 1, *decay.shape[1:])
        y_lbi = torch.empty_like(dt)
        for j, span in enumerate(spans):
            _run_block(dt[span], v[span], A_ni, B[span], starts[j], decay, states)
            starts[j + 1].copy_(states[span.stop - span.start])
            _read(C[span], states[1 : 1 + span.stop - span.start], out=y_lbi[span])
        ctx.save_for_backward(u_bli, dt_bli, A_in, B_bln, C_bln, starts)
        ctx.block = block
        return y_lbi.transpose(0, 1), starts[-1].mT.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_bli: Tensor | None, dlast_bin: Tensor | None) -> tuple[Tensor | None, ...]:
        u_bli, dt_bli, A_in, B_bln, C_bln, starts = ctx.saved_tensors
        u, dt, B, C = (_time_first(t) for t in (u_bli, dt_bli, B_bln, C_bln))
        dy = torch.zeros_like(dt) if dy_bli is None else _time_first(dy_bli)
        A_ni, v = A_in.mT.contiguous(), dt * u
        decay, states = _buffers(dt, A_ni, ctx.block)
        gradients = torch.empty_like(decay)
        # The gradient of the state after a block, through all that comes later.
        later = torch.zeros_like(decay[0]) if dlast_bin is None else dlast_bin.mT.contiguous()
        dA = torch.zeros_like(later)
        dv, ddt, dB, dC = (torch.empty_like(t) for t in (dt, dt, B, C))
        for j, span in reversed(list(enumerate(_spans(len(dt), ctx.block)))):
            k = span.stop - span.start
            _run_block(dt[span], v[span], A_ni, B[span], starts[j], decay, states)
            a, G = decay[:k], gradients[:k]
            _run_back(dy[span], C[span], a, G, later)
            _sum_channels(states[1 : k + 1], dy[span], out=dC[span])
            _sum_channels(G, v[span], out=dB[span])
            _read(B[span], G, out=dv[span])
            E = G.mul_(a).mul_(states[:k])
            dA += torch.mul(E, dt[span, :, None], out=a).sum(0)
            torch.sum(E.mul_(A_ni), 2, out=ddt[span])
        ddt.addcmul_(dv, u)
        du_bli, ddt_bli, dB_bln, dC_bln = (t.transpose(0, 1) for t in (dv.mul_(dt), ddt, dB, dC))
        return du_bli, ddt_bli, dA.sum(0).mT, dB_bln, dC_bln, None


def _time_first(t_bl: Tensor) -> Tensor:
    return t_bl.transpose(0, 1).contiguous()


def _spans(length: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, length)) for start in range(0, length, block)]


def _buffers(dt_lbi: Tensor, A_ni: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Room for a block's decays, and for the state before it and those after each of its tokens."""
    shape = (dt_lbi.shape[1], *A_ni.shape)
    return dt_lbi.new_empty(block, *shape), dt_lbi.new_empty(block + 1, *shape)


def _run_block(
    dt_kbi: Tensor,
    v_kbi: Tensor,
    A_ni: Tensor,
    B_kbn: Tensor,
    start_bni: Tensor,
    decay: Tensor,
    states: Tensor,
) -> None:
    """Fill the buffers with a block's decays and states. v: dt u."""
    k = len(dt_kbi)
    torch.mul(dt_kbi[:, :, None], A_ni * LOG2_E, out=decay[:k]).exp2_()
    states[0].copy_(start_bni)
    torch.mul(v_kbi[:, :, None], B_kbn[..., None], out=states[1 : k + 1])
    before, *after = states[: k + 1].unbind(0)
    for decay_bni, state_bni in zip(decay[:k].unbind(0), after, strict=True):
        before = state_bni.addcmul_(decay_bni, before)


def _run_back(dy_kbi: Tensor, C_kbn: Tensor, decay_kbni: Tensor, G_kbni: Tensor, later_bni: Tensor) -> None:
    """Fill G with the gradients of a block's states, and `later` with that of the state before the block."""
    torch.mul(dy_kbi[:, :, None], C_kbn[..., None], out=G_kbni)
    after, *earlier = reversed(G_kbni.unbind(0))
    first, *decays = decay_kbni.unbind(0)
    after.add_(later_bni)
    for G_bni, decay_bni in zip(earlier, reversed(decays), strict=True):
        after = G_bni.addcmul_(decay_bni, after)
    torch.mul(first, after, out=later_bni)


def _read(weight_kbn: Tensor, states_kbni: Tensor, out: Tensor) -> None:
    """Sum of states over n, weighted: (k, b, i)."""
    torch.bmm(weight_kbn.flatten(0, 1)[:, None], states_kbni.flatten(0, 1), out=out.flatten(0, 1)[:, None])


def _sum_channels(states_kbni: Tensor, weight_kbi: Tensor, out: Tensor) -> None:
    """Sum of states over channels, weighted: (k, b, n)."""
    # A row times the transpose: as a product with a column, torch takes four times as long on a CPU.
    torch.bmm(weight_kbi.flatten(0, 1)[:, None], states_kbni.flatten(0, 1).mT, out=out.flatten(0, 1)[:, None])
