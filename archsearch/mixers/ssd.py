"""The state-space dual of Mamba-2 (arXiv 2405.21060).

S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, and y_t = S_t C_t.

Shape suffixes: b batch, l length, h heads, p head_dim, g groups, r heads a group, n state size, c chunks,
q tokens a chunk. Inside the chunked scan every tensor is (b, c, g, r, q, ...), heads split by group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64
"""On a CPU 64 tokens a chunk are fastest: the matmuls are large enough and the q x q part still small."""


def ssd_reference(
    x_blhp: Tensor, dt_blh: Tensor, A_h: Tensor, B_blgn: Tensor, C_blgn: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, token by token: the truth that faster paths are held against.

    A_h is negative, dt_blh positive. Returns y (batch, length, heads, head_dim) and the last state
    (batch, heads, head_dim, state).
    """
    heads_a_group = x_blhp.shape[2] // B_blgn.shape[2]
    B_blhn = B_blgn.repeat_interleave(heads_a_group, dim=2)
    C_blhn = C_blgn.repeat_interleave(heads_a_group, dim=2)
    state_bhpn = x_blhp.new_zeros(*x_blhp.shape[:1], *x_blhp.shape[2:], B_blgn.shape[-1])
    ys = []
    for t in range(x_blhp.shape[1]):
        y_bhp, state_bhpn = ssd_step(x_blhp[:, t], dt_blh[:, t], A_h, B_blhn[:, t], C_blhn[:, t], state_bhpn)
        ys.append(y_bhp)
    return torch.stack(ys, dim=1), state_bhpn


def ssd_step(
    x_bhp: Tensor, dt_bh: Tensor, A_h: Tensor, B_bgn: Tensor, C_bgn: Tensor, state_bhpn: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence."""
    heads_a_group = x_bhp.shape[1] // B_bgn.shape[1]
    B_bhn = B_bgn.repeat_interleave(heads_a_group, dim=1)
    C_bhn = C_bgn.repeat_interleave(heads_a_group, dim=1)
    decay_bh = (dt_bh * A_h).exp()
    update_bhpn = (dt_bh[..., None] * x_bhp)[..., None] * B_bhn[:, :, None]
    state_bhpn = decay_bh[..., None, None] * state_bhpn + update_bhpn
    return torch.einsum("bhpn,bhn->bhp", state_bhpn, C_bhn), state_bhpn


def ssd_chunked(
    x_blhp: Tensor,
    dt_blh: Tensor,
    A_h: Tensor,
    B_blgn: Tensor,
    C_blgn: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same function by matmuls: quadratic within chunks, a recurrence between them.

    Any length; a sequence that fits one chunk has no recurrence. Differentiable once.
    """
    length = x_blhp.shape[1]
    q = min(chunk, length)
    if pad := -length % q:
        # dt = 0 there: the state neither decays nor grows.
        x_blhp, B_blgn, C_blgn = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x_blhp, B_blgn, C_blgn))
        dt_blh = F.pad(dt_blh, (0, 0, 0, pad))
    y_blhp, last_bhpn = _ChunkedScan.apply(x_blhp, dt_blh, A_h, B_blgn, C_blgn, q)
    return y_blhp[:, :length], last_bhpn


class _ChunkedScan(torch.autograd.Function):
    """The chunked scan with a backward pass of its own.

    Within a chunk, with a the running sum of dt A, L_ij = exp(a_i - a_j) for j <= i, M = (C B^T) * L and
    u = dt x: y = M u + exp(a) * (C S), S being the state before the chunk. C B^T is computed once a group,
    never repeated to the heads. What autograd would keep for the backward pass, mostly q x q matrices, is
    computed again instead: on a CPU that is cheaper than the memory traffic, and takes half the memory.

    The gradient of a needs no q x q matrix: da_i = <dy_i, y_i> - <du_i, u_i>, and at a chunk's last token
    also <dS', S'>, S' being the state after it.
    """

    @staticmethod
    def forward(
        ctx: Any, x_blhp: Tensor, dt_blh: Tensor, A_h: Tensor, B_blgn: Tensor, C_blgn: Tensor, q: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        groups, heads = B_blgn.shape[2], x_blhp.shape[2] // B_blgn.shape[2]
        x, dt = _by_chunk(x_blhp, q, groups), _by_chunk(dt_blh, q, groups)
        B, C = (_by_chunk(t, q, groups).squeeze(3) for t in (B_blgn, C_blgn))
        a = _log_decay(dt, A_h)
        u = x * dt[..., None]
        y = causal_decay(a).mul_((C @ B.mT).unsqueeze(3)) @ u
        added = B.mT @ _to_group(u * (a[..., -1:] - a).exp()[..., None])
        after = _pass_states(added, _over_chunk(a, u.shape[-1]))
        if after.shape[1] > 1:
            y[:, 1:] += _from_group(C[:, 1:] @ after[:, :-1], heads) * a[:, 1:].exp()[..., None]
        ctx.save_for_backward(x, dt, A_h, B, C, y, after)
        last = after[:, -1].unflatten(-1, (heads, -1)).permute(0, 1, 3, 4, 2)
        # A copy: a view would keep the states of all chunks alive.
        return _by_token(y), last.flatten(1, 2).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_blhp: Tensor, dlast_bhpn: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A_h, B, C, y, after = ctx.saved_tensors
        groups, heads, q = x.shape[2:5]
        dy = torch.zeros_like(y) if dy_blhp is None else _by_chunk(dy_blhp, q, groups)
        a = _log_decay(dt, A_h)
        u = x * dt[..., None]

        decay = causal_decay(a)
        dG = (dy @ u.mT).mul_(decay).sum(3)  # b c g q q
        dB, dC = dG.mT @ C, dG @ B
        du = decay.mul_((C @ B.mT).unsqueeze(3)).mT @ dy
        del decay
        da_end = None
        if after.shape[1] > 1 or dlast_bhpn is not None:
            to_end = (a[..., -1:] - a).exp()[..., None]
            dy_decayed = _to_group(dy * a.exp()[..., None])
            dafter = _pass_gradients(dlast_bhpn, C.mT @ dy_decayed, _over_chunk(a, u.shape[-1]), heads)
            dB += _to_group(u * to_end) @ dafter.mT
            du += _from_group(B @ dafter, heads) * to_end
            dC[:, 1:] += dy_decayed[:, 1:] @ after[:, :-1].mT
            da_end = (dafter * after).sum(-2).unflatten(-1, (heads, -1)).sum(-1)

        da = (dy * y).sum(-1) - (du * u).sum(-1)
        if da_end is not None:
            da[..., -1] += da_end
        da = da.flip(-1).cumsum(-1).flip(-1)  # a step size enters every later sum of its chunk
        ddt = da * A_h.view(groups, -1, 1) + (du * x).sum(-1)
        return (
            _by_token(du * dt[..., None]),
            _by_token(ddt[..., None]).squeeze(-1),
            (da * dt).sum((0, 1, 4)).flatten(),
            _by_token(dB[:, :, :, None]),
            _by_token(dC[:, :, :, None]),
            None,
        )


def _by_chunk(t: Tensor, q: int, groups: int) -> Tensor:
    """(b, l, g r, ...) -> (b, c, g, r, q, ...)."""
    t = t.unflatten(2, (groups, -1)).unflatten(1, (-1, q))
    return t.permute(0, 1, 3, 4, 2, *range(5, t.ndim)).contiguous()


def _by_token(t: Tensor) -> Tensor:
    """(b, c, g, r, q, w) -> (b, l, g r, w)."""
    return t.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)


def _to_group(t: Tensor) -> Tensor:
    """(b, c, g, r, q, p) -> (b, c, g, q, r p): one matmul then serves all heads of a group."""
    return t.transpose(3, 4).flatten(4)


def _from_group(t: Tensor, heads: int) -> Tensor:
    """The way back."""
    return t.unflatten(-1, (heads, -1)).transpose(3, 4)


def _log_decay(dt: Tensor, A_h: Tensor) -> Tensor:
    """a: the running sum of dt A within each chunk, (b, c, g, r, q)."""
    return (dt * A_h.view(dt.shape[2], -1, 1)).cumsum(-1)


def causal_decay(a: Tensor) -> Tensor:
    """exp(a_i - a_j) for j <= i, else 0; (..., q) -> (..., q, q)."""
    # Above the diagonal the exponential may overflow to infinity, which tril_ overwrites with zero.
    return (a[..., :, None] - a[..., None, :]).exp_().tril_()


def _over_chunk(a: Tensor, head_dim: int) -> Tensor:
    """Decay from one chunk's end to the next's, for each feature of a state: (b, c, g, 1, r p)."""
    return a[..., -1].exp().repeat_interleave(head_dim, dim=-1).unsqueeze(3)


def _pass_states(added: Tensor, over: Tensor) -> Tensor:
    """States after each chunk, (b, c, g, n, r p): S_c = over_c * S_{c-1} + added_c, in place of `added`."""
    for c in range(1, added.shape[1]):
        added[:, c].addcmul_(added[:, c - 1], over[:, c])
    return added


def _pass_gradients(dlast_bhpn: Tensor | None, read: Tensor, over: Tensor, heads: int) -> Tensor:
    """Gradients of the states after each chunk, from the last's and from what later chunks read of them.

    read: (b, c, g, n, r p), the gradient of the state before each chunk through that chunk's output.
    """
    dafter = torch.zeros_like(read)
    if dlast_bhpn is not None:
        last = dlast_bhpn.unflatten(1, (-1, heads)).permute(0, 1, 4, 2, 3).flatten(3)
        dafter[:, -1] = last
    for c in range(read.shape[1] - 1, 0, -1):
        torch.addcmul(read[:, c], dafter[:, c], over[:, c], out=dafter[:, c - 1])
    return dafter
