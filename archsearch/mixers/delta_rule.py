"""The gated delta rule (arXiv 2412.06464).

S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - k_t^T exp(g_t) S_{t-1})), and o_t = q_t^T S_t: the state decays
first, and what k_t still finds in it is then replaced by v_t, with strength beta_t.

Shape suffixes: b batch, l length, g key heads, r value heads a key head, h = g r value heads, k key_dim,
v value_dim, c chunks, q tokens a chunk, n = b g r. Inside the chunked scan tensors are (c, b, g, r, q, ...),
so that a chunk is contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archsearch.mixers.ssd import causal_decay

CHUNK = 64
"""As for Mamba-2: on a CPU the matmuls are large enough and the q x q part still small."""

SOLVED_WHOLE = 16
"""Triangles up to this size are inverted by substitution; larger ones by halves, which are matmuls."""

FORGETS_ALL = -104.0
"""exp(-104) is 0 in float32. A stronger decay says no more, and would cost digits of the sum it enters."""

UNIT_EPS = 1e-6
"""Added to squared lengths, as the released models do."""


def gated_delta_reference(
    q_blgk: Tensor, k_blgk: Tensor, v_blhv: Tensor, g_blh: Tensor, beta_blh: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, token by token: the truth that faster paths are held against.

    g_blh is the logarithm of the decay, at most 0. Returns o (batch, length, value heads, value_dim) and the
    last state (batch, value heads, key_dim, value_dim).
    """
    state_bhkv = v_blhv.new_zeros(v_blhv.shape[0], v_blhv.shape[2], k_blgk.shape[-1], v_blhv.shape[-1])
    outputs = []
    for t in range(v_blhv.shape[1]):
        o_bhv, state_bhkv = gated_delta_step(
            q_blgk[:, t], k_blgk[:, t], v_blhv[:, t], g_blh[:, t], beta_blh[:, t], state_bhkv
        )
        outputs.append(o_bhv)
    return torch.stack(outputs, dim=1), state_bhkv


def gated_delta_step(
    q_bgk: Tensor, k_bgk: Tensor, v_bhv: Tensor, g_bh: Tensor, beta_bh: Tensor, state_bhkv: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence."""
    shared = v_bhv.shape[1] // k_bgk.shape[1]
    q_bhk, k_bhk = (t.repeat_interleave(shared, dim=1) for t in (q_bgk, k_bgk))
    decayed_bhkv = g_bh.exp()[..., None, None] * state_bhkv
    found_bhv = torch.einsum("bhk,bhkv->bhv", k_bhk, decayed_bhkv)
    written_bhv = beta_bh[..., None] * (v_bhv - found_bhv)
    state_bhkv = decayed_bhkv + k_bhk[..., None] * written_bhv[..., None, :]
    return torch.einsum("bhk,bhkv->bhv", q_bhk, state_bhkv), state_bhkv


@torch.compiler.disable(reason="its backward pass is its own, and it writes into buffers")
def gated_delta_chunked(
    q_blgk: Tensor,
    k_blgk: Tensor,
    v_blhv: Tensor,
    g_blh: Tensor,
    beta_blh: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same function by matmuls: a triangular system within chunks, a recurrence between them.

    Any length. Differentiable once. Decays stronger than exp(FORGETS_ALL) count as that.
    """
    length = v_blhv.shape[1]
    q = min(chunk, length)
    if pad := -length % q:
        # g = 0 and beta = 0 there: the state neither decays nor changes.
        q_blgk, k_blgk, v_blhv = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (q_blgk, k_blgk, v_blhv))
        g_blh, beta_blh = (F.pad(t, (0, 0, 0, pad)) for t in (g_blh, beta_blh))
    o_blhv, last_bhkv = _ChunkedScan.apply(q_blgk, k_blgk, v_blhv, g_blh.clamp(min=FORGETS_ALL), beta_blh, q)
    return o_blhv[:, :length], last_bhkv


class _ChunkedScan(torch.autograd.Function):
    """The chunked scan with a backward pass of its own.

    Within a chunk, with a the running sum of g, D_ij = exp(a_i - a_j) for j <= i, L = (K K^T) * D below the
    diagonal, M = (Q K^T) * D, S the state before the chunk and S' the one after it, the corrections P are

      P = E - L (beta P), so P = T E    with E = V - exp(a) K S and T = (I + L beta)^-1
      O = M (beta P) + exp(a) Q S       S' = exp(a_end) S + (exp(a_end - a) K)^T (beta P)

    T (the UT transform of arXiv 2406.06484) does not know S, so that all chunks are inverted at once. Its
    entries are bounded, unlike those of the powers of L, by which it could be summed.

    Kept for the backward pass: q, k, T, P and the states; D, L and M are computed again. With U the gradient
    of beta P through O and S', the gradients of E and of V are dE = T^T (beta U), that of beta is
    <P, U - L^T dE>, and that of a needs no q x q matrix: what P passes on cancels what it receives, so that
    da_i = <do_i, o_i> - <dv_i, v_i>, and at a chunk's last token also <dS', S'>.
    """

    @staticmethod
    def forward(
        ctx: Any, q_blgk: Tensor, k_blgk: Tensor, v_blhv: Tensor, g_blh: Tensor, beta_blh: Tensor, q: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        groups = k_blgk.shape[2]
        query, key = _by_chunk(q_blgk, q, groups), _by_chunk(k_blgk, q, groups)
        a, beta = _by_chunk(g_blh, q, groups).cumsum(-1), _by_chunk(beta_blh, q, groups)[..., None]
        v = _by_chunk(v_blhv, q, groups)
        decay = causal_decay(a)
        T = inverse_of_unit_lower((decay * (key @ key.mT)).mul_(beta.mT).tril_(-1))
        P, after = _pass_states(T, v, beta, key, a)
        o = (decay.mul_(query @ key.mT) @ (beta * P)).flatten(1, 3)
        if len(after) > 1:
            read = query[1:] * a[1:].exp()[..., None]
            o[1:].flatten(0, 1).baddbmm_(read.flatten(0, 3), after[:-1].flatten(0, 1))
        o_blhv = _by_token(o.view_as(v))
        ctx.save_for_backward(query, key, v_blhv, a, beta, T, P, after, o_blhv)
        # A copy: a view would keep the states of all chunks alive.
        return o_blhv, after[-1].unflatten(0, (v_blhv.shape[0], -1)).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_blhv: Tensor | None, dlast_bhkv: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, v_blhv, a, beta, T, P, after, o_blhv = ctx.saved_tensors
        q, groups = T.shape[-1], key.shape[2]
        if do_blhv is None:
            do_blhv = torch.zeros_like(o_blhv)
        do = _by_chunk(do_blhv, q, groups)
        decay = causal_decay(a)
        U = (decay * (query @ key.mT)).mT @ do
        U, dE, dafter = _pass_gradients(U, do, dlast_bhkv, query, key, a, beta, T)

        written = beta * P
        dKK = (dE @ written.mT).mul_(decay).tril_(-1).sum(3, keepdim=True).neg_()
        dQK = (do @ written.mT).mul_(decay).sum(3, keepdim=True)
        dq = dQK @ key
        dk = dQK.mT @ query + (dKK + dKK.mT) @ key
        if len(after) > 1:
            before, since = after[:-1].view(-1, *a.shape[1:4], *after.shape[-2:]), a[1:].exp()[..., None]
            dq[1:] += (do[1:] @ before.mT).mul_(since).sum(3, keepdim=True)
            dk[1:] -= (dE[1:] @ before.mT).mul_(since).sum(3, keepdim=True)
        if dafter is not None:
            to_end = (a[..., -1:] - a).exp()[..., None]
            dk += (written @ dafter.mT).mul_(to_end).sum(3, keepdim=True)
        L = decay.mul_(key @ key.mT).tril_(-1)
        dbeta = (U - L.mT @ dE).mul_(P).sum(-1, keepdim=True)

        dv_blhv = _by_token(dE)
        da_blh = (do_blhv * o_blhv).sum(-1) - (dv_blhv * v_blhv).sum(-1)
        da = _by_chunk(da_blh, q, groups)
        if dafter is not None:
            da[..., -1] += (dafter * after.view_as(dafter)).sum((-1, -2))
        dg = da.flip(-1).cumsum(-1).flip(-1)  # a token's decay enters every later sum of its chunk
        return (
            _by_token(dq),
            _by_token(dk),
            dv_blhv,
            _by_token(dg[..., None]).squeeze(-1),
            _by_token(dbeta).squeeze(-1),
            None,
        )


def _by_chunk(t: Tensor, q: int, groups: int) -> Tensor:
    """(b, l, g r, ...) -> (c, b, g, r, q, ...)."""
    t = t.unflatten(2, (groups, -1)).unflatten(1, (-1, q))
    return t.permute(1, 0, 3, 4, 2, *range(5, t.ndim)).contiguous()


def _by_token(t: Tensor) -> Tensor:
    """(c, b, g, r, q, w) -> (b, l, g r, w)."""
    return t.permute(1, 0, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)


def inverse_of_unit_lower(lower: Tensor) -> Tensor:
    """(I + lower)^-1 for matrices that are zero on the diagonal and above it: (..., q, q)."""
    flat = lower.flatten(0, -3)
    inverse = torch.zeros_like(flat)
    _invert_block(flat, inverse, 0, flat.shape[-1])
    return inverse.view_as(lower)


def _invert_block(lower: Tensor, inverse: Tensor, start: int, end: int) -> None:
    """Fill in the block of the inverse on rows and columns start..end."""
    rows = slice(start, end)
    if end - start <= SOLVED_WHOLE:
        eye = torch.eye(end - start, dtype=lower.dtype, device=lower.device)
        inverse[:, rows, rows] = torch.linalg.solve_triangular(
            lower[:, rows, rows], eye, upper=False, unitriangular=True
        )
        return
    middle = (start + end) // 2
    upper, below = slice(start, middle), slice(middle, end)
    _invert_block(lower, inverse, start, middle)
    _invert_block(lower, inverse, middle, end)
    passed = lower[:, below, upper] @ inverse[:, upper, upper]
    inverse[:, below, upper] = (inverse[:, below, below] @ passed).neg_()


def _pass_states(T: Tensor, v: Tensor, beta: Tensor, key: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """P of every chunk, shaped as v, and the states after them, (c, n, k, v)."""
    T_c, v_c, beta_c = T.flatten(1, 3), v.flatten(1, 3), beta.flatten(1, 3)
    key_in = (key * a.exp()[..., None]).flatten(1, 3)
    key_out = (key * (a[..., -1:] - a).exp()[..., None]).flatten(1, 3)
    over = a[..., -1].exp().flatten(1)[..., None, None]
    P = torch.empty_like(v_c)
    after = v.new_empty(*v_c.shape[:2], key.shape[-1], v.shape[-1])
    for c in range(len(v_c)):
        E = torch.baddbmm(v_c[c], key_in[c], after[c - 1], alpha=-1) if c else v_c[c]
        torch.bmm(T_c[c], E, out=P[c])
        torch.bmm(key_out[c].mT, beta_c[c] * P[c], out=after[c])
        if c:
            after[c].addcmul_(after[c - 1], over[c])
    return P.view_as(v), after


def _pass_gradients(
    U: Tensor,
    do: Tensor,
    dlast_bhkv: Tensor | None,
    query: Tensor,
    key: Tensor,
    a: Tensor,
    beta: Tensor,
    T: Tensor,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """U and dE of every chunk, shaped as do, and the gradients of the states after them.

    U comes with what it receives through the outputs of its own chunk; what it receives through later ones
    is added in place. The gradients of states are None where none was read: a single chunk whose last state
    has no gradient.
    """
    U, T_c, do_c, beta_c = U.flatten(1, 3), T.flatten(1, 3), do.flatten(1, 3), beta.flatten(1, 3)
    dE = torch.empty_like(do_c)
    if len(do) == 1 and dlast_bhkv is None:
        torch.bmm(T_c[0].mT, beta_c[0] * U[0], out=dE[0])
        return U.view_as(do), dE.view_as(do), None
    since = a.exp()[..., None]
    query_in, key_in = (query * since).flatten(1, 3), (key * since).flatten(1, 3)
    key_out = (key * (a[..., -1:] - a).exp()[..., None]).flatten(1, 3)
    over = a[..., -1].exp().flatten(1)[..., None, None]
    dafter = do.new_zeros(*do_c.shape[:2], key.shape[-1], do.shape[-1])
    if dlast_bhkv is not None:
        dafter[-1] = dlast_bhkv.flatten(0, 1)
    for c in range(len(do) - 1, -1, -1):
        U[c].baddbmm_(key_out[c], dafter[c])
        torch.bmm(T_c[c].mT, beta_c[c] * U[c], out=dE[c])
        if c:
            torch.mul(dafter[c], over[c], out=dafter[c - 1])
            dafter[c - 1].baddbmm_(query_in[c].mT, do_c[c]).baddbmm_(key_in[c].mT, dE[c], alpha=-1)
    return U.view_as(do), dE.view_as(do), dafter.view(*do.shape[:4], *dafter.shape[-2:])


def unit_vectors(x_k: Tensor, scale: float = 1.0) -> Tensor:
    """scale * x / |x|, over the last axis, in float32 at least; zero stays zero."""
    return _UnitVectors.apply(x_k, scale)


class _UnitVectors(torch.autograd.Function):
    """With u = x / |x|: dx = scale / |x| (dy - u <u, dy>), in fewer memory passes than autograd's."""

    @staticmethod
    def forward(ctx: Any, x_k: Tensor, scale: float) -> Tensor:
        wide = x_k.to(torch.promote_types(x_k.dtype, torch.float32))
        inverse = (wide * wide).sum(-1, keepdim=True).add_(UNIT_EPS).rsqrt_()
        ctx.save_for_backward(x_k, inverse)
        ctx.scale = scale
        return wide * (inverse * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_k: Tensor) -> tuple[Tensor | None, ...]:
        x_k, inverse = ctx.saved_tensors
        unit = x_k.to(inverse.dtype) * inverse
        dot = (unit * dy_k).sum(-1, keepdim=True)
        dx_k = torch.addcmul(dy_k, unit, dot, value=-1).mul_(inverse * ctx.scale)
        return dx_k.to(x_k.dtype), None
