"""The state-space dual of Mamba-2 (arXiv 2405.21060).

S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, and y_t = S_t C_t.

Shape suffixes: b batch, l length, h = g r heads, p head_dim, g groups, r heads a group, n state size,
c chunks, q tokens a chunk. The chunked scan splits heads by group and tokens by chunk, (b, c, q, g, r, ...),
and copies to (b, c, g, r, q, p) for products a head, to (b, c, g, q, r p) for products a group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archsearch.mixers.blocks import LOG2_E, blocks

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


@torch.compiler.disable(reason="its backward pass is its own, and it writes into buffers")
def ssd_chunked(
    x_blhp: Tensor,
    dt_blh: Tensor,
    A_h: Tensor,
    B_blgn: Tensor,
    C_blgn: Tensor,
    D_h: Tensor | None = None,
    *,
    chunk: int = CHUNK,
    wants_state: bool = True,
) -> tuple[Tensor, Tensor]:
    """The same function by matmuls: quadratic within chunks, a recurrence between them. With D_h, y + D x.

    The last state is empty where it is not wanted, and then costs nothing. Any length; a sequence that fits
    one chunk has no recurrence. Differentiable once.
    """
    length = x_blhp.shape[1]
    q = min(chunk, length)
    if pad := -length % q:
        # dt = 0 there: the state neither decays nor grows.
        x_blhp, B_blgn, C_blgn = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x_blhp, B_blgn, C_blgn))
        dt_blh = F.pad(dt_blh, (0, 0, 0, pad))
    y_blhp, last_bhpn = _ChunkedScan.apply(x_blhp, dt_blh, A_h, B_blgn, C_blgn, D_h, q, wants_state)
    return y_blhp[:, :length], last_bhpn


class _ChunkedScan(torch.autograd.Function):
    """The chunked scan with a backward pass of its own.

    Within a chunk, with a the running sum of dt A, L_ij = exp(a_i - a_j) for j < i, M = (C B^T) * L and
    u = dt x: y_i = z_i + (D + dt_i <C_i, B_i>) x_i with z = M u + exp(a) * (C S), S being the state before
    the chunk. C B^T is computed once a group, never repeated to the heads. What autograd would keep for the
    backward pass, mostly q x q matrices, is computed again instead: on a CPU that is cheaper than the memory
    traffic. Both passes take one block of sequences and chunks after another, all of which stays in cache; of
    all that, only the states and z are kept.

    The gradient of a needs no q x q matrix: da_i = <dy_i, z_i> - <du_i, u_i>, and at a chunk's last token
    also <dS', S'>, S' being the state after it. What a token gives itself has no decay in it and is in
    neither z nor that du: often most of y, it would cancel in the difference and take its digits along.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_blhp: Tensor,
        dt_blh: Tensor,
        A_h: Tensor,
        B_blgn: Tensor,
        C_blgn: Tensor,
        D_h: Tensor | None,
        q: int,
        wants_state: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        y_blhp = torch.empty_like(x_blhp, memory_format=torch.contiguous_format)
        # Without rates to learn, nobody needs z.
        z_blhp = torch.empty_like(y_blhp) if any(ctx.needs_input_grad[1:3]) else y_blhp
        groups, n = B_blgn.shape[2:]
        x, dt, y, z = (_by_chunk(t, q, groups) for t in (x_blhp, dt_blh, y_blhp, z_blhp))
        B, C = (_by_chunk(t, q, groups).squeeze(4) for t in (B_blgn, C_blgn))
        A_gr, D_gr = A_h.view(groups, -1), None if D_h is None else D_h.view(groups, -1)
        count = x.shape[1] if wants_state else x.shape[1] - 1
        states = x.new_empty(len(x), count, groups, n, *x.shape[4:])  # after each chunk, of `count`
        for rows, span in blocks(x):
            at = rows, span
            chunk = _Chunks.of(dt[at], A_gr, B[at], C[at])
            scores = chunk.scores()
            mixed = _by_token(chunk.decay().mul_(scores) @ _by_head(x[at], dt[at]))
            if m := min(span.stop, count) - span.start:
                added = chunk.B[:, :m].mT @ _by_row(x[at][:, :m], (dt[at] * chunk.to_end)[:, :m])
                _pass_states(states[rows], added, chunk.over, slice(span.start, span.start + m))
            first, before = _states_before(states[rows], span)
            z[at][:, :first].copy_(mixed[:, :first])
            if before is not None:
                read, since = _from_row(chunk.C[:, first:] @ before.flatten(4), x), chunk.since[:, first:]
                torch.addcmul(mixed[:, first:], read, since[..., None], out=z[at][:, first:])
            torch.addcmul(z[at], x[at], _own_weight(dt[at], scores, D_gr)[..., None], out=y[at])
        ctx.save_for_backward(
            x_blhp, dt_blh, A_h, B_blgn, C_blgn, D_h, None if z_blhp is y_blhp else z_blhp, states
        )
        ctx.q = q
        if not wants_state:
            return y_blhp, states.new_empty(0)
        # A copy: a view would keep the states of all chunks alive.
        last_bhpn = states[:, -1].permute(0, 1, 3, 4, 2).flatten(1, 2)
        return y_blhp, last_bhpn.clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_blhp: Tensor | None, dlast_bhpn: Tensor | None) -> tuple[Tensor | None, ...]:
        x_blhp, dt_blh, A_h, B_blgn, C_blgn, D_h, z_blhp, states = ctx.saved_tensors
        if dy_blhp is None:
            dy_blhp = torch.zeros_like(x_blhp)
        inputs = x_blhp, dt_blh, B_blgn, C_blgn
        found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs]
        groups = B_blgn.shape[2]
        x, dt, B, C, dy = (_by_chunk(t, ctx.q, groups) for t in (*inputs, dy_blhp))
        z = None if z_blhp is None else _by_chunk(z_blhp, ctx.q, groups)
        dx, ddt, dB, dC = (_by_chunk(t, ctx.q, groups) for t in found)
        B, C, dB, dC = (t.squeeze(4) for t in (B, C, dB, dC))
        A_gr, D_gr = A_h.view(groups, -1), None if D_h is None else D_h.view(groups, -1)
        dA_gr, dD_gr = torch.zeros_like(A_gr), torch.zeros_like(A_gr)
        chunks, later = x.shape[1], None
        for rows, span in reversed(blocks(x)):
            at = rows, span
            chunk = _Chunks.of(dt[at], A_gr, B[at], C[at])
            dy_head, decay, scores = _by_head(dy[at]), chunk.decay(), chunk.scores()
            yx = (dy[at] * x[at]).sum(-1)
            dG = (dy_head @ _by_head(x[at], dt[at]).mT).mul_(decay).sum(3)  # b c g q q
            dG.diagonal(dim1=-2, dim2=-1).copy_((yx * dt[at]).sum(-1).transpose(2, 3))
            dB_block, dC_block = dG.mT @ chunk.C, dG @ chunk.B
            du = _by_token(decay.mul_(scores).mT @ dy_head)
            da_end: Tensor | None = None
            if span.stop == chunks:
                later = None if dlast_bhpn is None else _state(dlast_bhpn[rows], groups)
            if chunks > 1 or later is not None:
                dy_row = _by_row(dy[at], chunk.since)
                read = (chunk.C.mT @ dy_row).unflatten(-1, x.shape[4:])
                m = read.shape[1] - (later is None)  # chunks whose last state somebody reads
                dafter, later = _pass_gradients(later, read, chunk.over)
                dafter, to_end, within = dafter[:, :m], chunk.to_end[:, :m], du
                dB_block[:, :m] += _by_row(x[at][:, :m], dt[at][:, :m] * to_end) @ dafter.flatten(4).mT
                passed = _from_row(chunk.B[:, :m] @ dafter.flatten(4), x)
                du = torch.empty_like(within, memory_format=torch.contiguous_format)
                torch.addcmul(within[:, :m], passed, to_end[..., None], out=du[:, :m])
                du[:, m:].copy_(within[:, m:])
                first, before = _states_before(states[rows], span)
                if before is not None:
                    dC_block[:, first:] += dy_row[:, first:] @ before.flatten(4).mT
                da_end = (dafter * states[rows, span.start : span.start + m]).sum((3, 5))
            dB[at], dC[at] = dB_block.transpose(2, 3), dC_block.transpose(2, 3)

            torch.mul(du, dt[at][..., None], out=dx[at])
            dx[at].addcmul_(dy[at], _own_weight(dt[at], scores, D_gr)[..., None])
            if D_gr is not None:
                dD_gr += yx.sum((0, 1, 2))
            if z is None:
                continue
            ux, da = (du * x[at]).sum(-1), (dy[at] * z[at]).sum(-1)
            da.addcmul_(ux, dt[at], value=-1)
            if da_end is not None:
                da[:, : da_end.shape[1], -1] += da_end
            da = da.flip(2).cumsum(2).flip(2)  # a step size enters every later sum of its chunk
            torch.addcmul(ux, da, A_gr, out=ddt[at])
            ddt[at].addcmul_(yx, _own_score(scores))
            dA_gr += (da * dt[at]).sum((0, 1, 2))
        dD_h = None if D_gr is None else dD_gr.flatten()
        ddt_blh, dA_h = (None, None) if z is None else (found[1], dA_gr.flatten())
        return found[0], ddt_blh, dA_h, found[2], found[3], dD_h, None, None


class _Chunks(NamedTuple):
    """What both passes need of a block of chunks.

    a: the running sum of dt A within each chunk; since, to_end, over: its exponential from the chunk's start
    to a token, from a token to the chunk's end, and over the whole chunk.
    """

    a: Tensor  # b c q g r
    B: Tensor  # b c g q n
    C: Tensor  # b c g q n

    @classmethod
    def of(cls, dt: Tensor, A_gr: Tensor, B: Tensor, C: Tensor) -> _Chunks:
        """B, C: (b, c, q, g, n)."""
        B, C = (t.transpose(2, 3).contiguous() for t in (B, C))
        return cls((dt * A_gr).cumsum(2), B, C)

    @property
    def since(self) -> Tensor:
        return self.a.exp()

    @property
    def to_end(self) -> Tensor:
        return (self.a[:, :, -1:] - self.a).exp()

    @property
    def over(self) -> Tensor:
        """(b, c, g, r)."""
        return self.a[:, :, -1].exp()

    def decay(self) -> Tensor:
        """L: (b, c, g, r, q, q)."""
        return causal_decay(self.a.permute(0, 1, 3, 4, 2).contiguous(), -1)

    def scores(self) -> Tensor:
        """C B^T: (b, c, g, 1, q, q)."""
        return (self.C @ self.B.mT).unsqueeze(3)


def _by_chunk(t: Tensor, q: int, groups: int) -> Tensor:
    """(b, l, g r, ...) as (b, c, q, g, r, ...)."""
    return t.unflatten(2, (groups, -1)).unflatten(1, (-1, q))


def _state(state_bhpn: Tensor, groups: int) -> Tensor:
    """(b, h, p, n) as (b, g, n, r, p), in which states are kept."""
    return state_bhpn.unflatten(1, (groups, -1)).permute(0, 1, 4, 2, 3)


def _by_head(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x (b, c, q, g, r, p) times weight (b, c, q, g, r), copied to (b, c, g, r, q, p)."""
    x = x.permute(0, 1, 3, 4, 2, 5)
    if weight is None:
        return x.contiguous()
    return torch.mul(x, weight.permute(0, 1, 3, 4, 2)[..., None], out=x.new_empty(x.shape))


def _by_token(t: Tensor) -> Tensor:
    """(b, c, g, r, q, p) as (b, c, q, g, r, p)."""
    return t.permute(0, 1, 4, 2, 3, 5)


def _by_row(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, c, q, g, r, p) times weight (b, c, q, g, r), copied to (b, c, g, q, r p)."""
    x = x.transpose(2, 3)
    return torch.mul(x, weight.transpose(2, 3)[..., None], out=x.new_empty(x.shape)).flatten(4)


def _from_row(t: Tensor, x: Tensor) -> Tensor:
    """(b, c, g, q, r p) as (b, c, q, g, r, p), as x is."""
    return t.unflatten(-1, x.shape[-2:]).transpose(2, 3)


def _own_score(scores: Tensor) -> Tensor:
    """<C_i, B_i>, the diagonal of the scores: (b, c, q, g, 1)."""
    return scores.diagonal(dim1=-2, dim2=-1).permute(0, 1, 4, 2, 3)


def _own_weight(dt: Tensor, scores: Tensor, D_gr: Tensor | None) -> Tensor:
    """What a token's x weighs in its own output: (b, c, q, g, r)."""
    weight = dt * _own_score(scores)
    return weight if D_gr is None else weight.add_(D_gr)


def causal_decay(a: Tensor, diagonal: int = 0) -> Tensor:
    """exp(a_i - a_j) for j <= i + diagonal, else 0; (..., q) -> (..., q, q)."""
    a = a * LOG2_E
    # Above the diagonal the exponential may overflow to infinity, which tril_ overwrites with zero.
    return (a[..., :, None] - a[..., None, :]).exp2_().tril_(diagonal)


def _states_before(states: Tensor, span: slice) -> tuple[int, Tensor | None]:
    """The first chunk of a span with a state before it, counted within the span; states from that one on."""
    first = 1 if span.start == 0 else 0
    if span.start + first == span.stop:
        return first, None
    return first, states[:, span.start + first - 1 : span.stop - 1]


def _pass_states(states: Tensor, added: Tensor, over: Tensor, span: slice) -> None:
    """Fill in a span's states, (b, c, g, n, r, p): S_c = over_c * S_{c-1} + added_c."""
    before = states[:, span.start - 1] if span.start else None
    filled = states[:, span]
    weights = over[:, : filled.shape[1], :, None, :, None]
    steps = added.view_as(filled).unbind(1), weights.unbind(1), filled.unbind(1)
    for added_c, over_c, state in zip(*steps, strict=True):
        if before is None:
            state.copy_(added_c)
        else:
            torch.addcmul(added_c, before, over_c, out=state)
        before = state


def _pass_gradients(later: Tensor | None, read: Tensor, over: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the states after each chunk of a block, and of the state before the block.

    later: of the state after the block, None for zero. read: (b, c, g, n, r, p), the gradient of the state
    before each chunk through that chunk's output.
    """
    dafter = torch.empty_like(read)
    steps = read.unbind(1), over[:, :, :, None, :, None].unbind(1), dafter.unbind(1)
    for read_c, over_c, dafter_c in reversed(list(zip(*steps, strict=True))):
        if later is None:
            dafter_c.zero_()
        else:
            dafter_c.copy_(later)
        later = torch.addcmul(read_c, dafter_c, over_c)
    assert later is not None, "a block has a chunk"
    return dafter, later
