"""The delta rule of Kimi Delta Attention (arXiv 2510.26692): a decay for each channel of the keys.

S_t = diag(exp(g_t)) S_{t-1} + k_t (beta_t (v_t - k_t^T diag(exp(g_t)) S_{t-1})), and o_t = q_t^T S_t: the
gated delta rule with a vector g_t where that has a number.

Shape suffixes: b batch, l length, h heads, k key_dim, v value_dim, c chunks, q tokens a chunk, n = b h.
Inside the chunked scan tensors are (c, n, q, ...), so that a chunk is contiguous, and while chunks are cut
into halves (m, 2, s, ...): m pairs of halves, the two of a pair, s tokens of a half.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from archsearch.mixers.delta_rule import inverse_of_unit_lower

CHUNK = 32
"""A power of two, as chunks are halved down to single tokens. On a CPU 32 is no slower than 64."""


def kda_reference(
    q_blhk: Tensor, k_blhk: Tensor, v_blhv: Tensor, g_blhk: Tensor, beta_blh: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, token by token: the truth that faster paths are held against.

    g_blhk is the logarithm of the decay, at most 0. Returns o (batch, length, heads, value_dim) and the last
    state (batch, heads, key_dim, value_dim).
    """
    state_bhkv = v_blhv.new_zeros(v_blhv.shape[0], *k_blhk.shape[2:], v_blhv.shape[-1])
    outputs = []
    for t in range(v_blhv.shape[1]):
        o_bhv, state_bhkv = kda_step(
            q_blhk[:, t], k_blhk[:, t], v_blhv[:, t], g_blhk[:, t], beta_blh[:, t], state_bhkv
        )
        outputs.append(o_bhv)
    return torch.stack(outputs, dim=1), state_bhkv


def kda_step(
    q_bhk: Tensor, k_bhk: Tensor, v_bhv: Tensor, g_bhk: Tensor, beta_bh: Tensor, state_bhkv: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence."""
    decayed_bhkv = g_bhk.exp()[..., None] * state_bhkv
    found_bhv = torch.einsum("bhk,bhkv->bhv", k_bhk, decayed_bhkv)
    written_bhv = beta_bh[..., None] * (v_bhv - found_bhv)
    state_bhkv = decayed_bhkv + k_bhk[..., None] * written_bhv[..., None, :]
    return torch.einsum("bhk,bhkv->bhv", q_bhk, state_bhkv), state_bhkv


@torch.compiler.disable(reason="its backward pass is its own, and it writes into buffers")
def kda_chunked(
    q_blhk: Tensor,
    k_blhk: Tensor,
    v_blhv: Tensor,
    g_blhk: Tensor,
    beta_blh: Tensor,
    *,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same function by matmuls: a triangular system within chunks, a recurrence between them.

    Any length and any decay. chunk: tokens a chunk at most, a power of two. Differentiable once.
    """
    length = v_blhv.shape[1]
    q = min(chunk, 1 << (length - 1).bit_length())
    if pad := -length % q:
        # g = 0 and beta = 0 there: the state neither decays nor changes.
        q_blhk, k_blhk, v_blhv, g_blhk = (
            F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (q_blhk, k_blhk, v_blhv, g_blhk)
        )
        beta_blh = F.pad(beta_blh, (0, 0, 0, pad))
    o_blhv, last_bhkv = _ChunkedScan.apply(q_blhk, k_blhk, v_blhv, g_blhk, beta_blh, q)
    return o_blhv[:, :length], last_bhkv


class _ChunkedScan(torch.autograd.Function):
    """The chunked scan with a backward pass of its own.

    As for the gated delta rule (`delta_rule`), but with D_ij = exp(a_i - a_j) a vector over the channels of
    the keys: L_ij = k_i^T (D_ij * k_j) below the diagonal, and M_ij = q_i^T (D_ij * k_j). With S the state
    before the chunk, S' the one after it and T = (I + L beta)^-1, the corrections P are

      P = T E with E = V - (exp(a) * K) S
      O = M (beta P) + (exp(a) * Q) S       S' = exp(a_end) * S + (exp(a_end - a) * K)^T (beta P)

    Kept for the backward pass: the inputs, L, M, T, P and the states; decays are computed again. With U the
    gradient of beta P through O and S', dE = T^T (beta U) is the gradient of V, -dE (beta P)^T that of L,
    dO (beta P)^T that of M, and <P, U - L^T dE> that of beta. The gradient of a is what a token gives as a
    reader less what it gives as one that is read: Q * dQ + K * (dK as reader - dK as read), and at a chunk's
    last token also dS' * S', summed over v.
    """

    @staticmethod
    def forward(
        ctx: Any, q_blhk: Tensor, k_blhk: Tensor, v_blhv: Tensor, g_blhk: Tensor, beta_blh: Tensor, q: int
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.batch = batch = len(v_blhv)
        query, key, v, g = (_by_chunk(t, q) for t in (q_blhk, k_blhk, v_blhv, g_blhk))
        beta = _by_chunk(beta_blh[..., None], q)
        ends = _ends(g)
        M, L = _scores(query, key, g)
        T = inverse_of_unit_lower(L * beta.mT)
        P, after = _pass_states(T, v, beta, key, ends)
        o = M @ (beta * P)
        if len(after) > 1:
            o[1:] += (query[1:] * ends.since[1:]) @ after[:-1]
        ctx.save_for_backward(query, key, g, beta, M, L, T, P, after)
        # A copy: a view would keep the states of all chunks alive.
        return _by_token(o, batch), after[-1].unflatten(0, (batch, -1)).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_blhv: Tensor | None, dlast_bhkv: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, g, beta, M, L, T, P, after = ctx.saved_tensors
        do = torch.zeros_like(P) if do_blhv is None else _by_chunk(do_blhv, T.shape[-1])
        ends = _ends(g)
        U, dE, dafter = _pass_gradients(M.mT @ do, do, dlast_bhkv, query, key, beta, T, ends)

        written = beta * P
        dM, dL = do @ written.mT, (dE @ written.mT).neg_()
        dq, reader, read = _score_gradients(dM, dL, query, key, g)
        if len(after) > 1:
            before, since = after[:-1].mT, ends.since[1:]
            dq[1:].addcmul_(do[1:] @ before, since)
            reader[1:].addcmul_(dE[1:] @ before, since, value=-1)
        if dafter is not None:
            read.addcmul_(written @ dafter.mT, ends.until)
        da = (query * dq).addcmul_(key, reader).addcmul_(key, read, value=-1)
        if dafter is not None:
            da[:, :, -1] += (dafter * after).sum(-1)
        # What a token reads of itself does not decay, and is no part of da.
        own = torch.diagonal(dM, dim1=-2, dim2=-1)[..., None]
        dq.addcmul_(own, key)
        dk = read.addcmul_(own, query).add_(reader)
        dg = da.flip(-2).cumsum(-2).flip(-2)  # a token's decay enters every later sum of its chunk
        dbeta = (U - L.mT @ dE).mul_(P).sum(-1, keepdim=True)
        dq, dk, dv, dg, dbeta = (_by_token(t, ctx.batch) for t in (dq, dk, dE, dg, dbeta))
        return dq, dk, dv, dg, dbeta.squeeze(-1), None


class _Ends(NamedTuple):
    """Decays from the chunk's start up to each token, and from each token to the end: (c, n, q, k)."""

    since: Tensor
    until: Tensor


def _by_chunk(t: Tensor, q: int) -> Tensor:
    """(b, l, h, w) -> (c, b h, q, w)."""
    return t.unflatten(1, (-1, q)).permute(1, 0, 3, 2, 4).flatten(1, 2).contiguous()


def _by_token(t: Tensor, batch: int) -> Tensor:
    """(c, b h, q, w) -> (b, l, h, w)."""
    return t.unflatten(1, (batch, -1)).permute(1, 0, 3, 2, 4).flatten(1, 2)


def _halves(g: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The decays by which the second half of a block sees the first, from pairs of tokens up to whole chunks.

    L and M are matmuls only where a_i - a_j splits into a part of i and a part of j, and exp(a_i) times
    exp(-a_j) would overflow. Cut at the middle of a block, with i in its second half and j in its first,
    both parts are at most 0; and what happens within the halves is cut in the same way.

    Gives s and (m, 2, s, k): the first half's decays up to the middle, the second's from there on. Sums of g
    grow with the halves, so that no digit is lost to differences of large ones.
    """
    # Of each half: the sum from its start up to a token, and the sum after that token up to its end.
    since, until = g.clone(), torch.zeros_like(g)
    s = 1
    while s < g.shape[2]:
        up_to, after = (t.view(-1, 2, s, t.shape[-1]) for t in (since, until))
        decay = torch.empty_like(after)
        torch.exp(after[:, 0], out=decay[:, 0])
        torch.exp(up_to[:, 1], out=decay[:, 1])
        yield s, decay
        after[:, 0] += up_to[:, 1, -1:]
        up_to[:, 1] += up_to[:, 0, -1:]
        s *= 2


def _ends(g: Tensor) -> _Ends:
    until = torch.zeros_like(g)
    until[:, :, :-1] = g[:, :, 1:].flip(-2).cumsum(-2).flip(-2)
    return _Ends(g.cumsum(-2).exp_(), until.exp_())


def _scores(query: Tensor, key: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """M and L of every chunk, (c, n, q, q) each."""
    c, n, q, _ = key.shape
    scores = key.new_zeros(2, c, n, q, q)
    for s, decay in _halves(g):
        readers, read = _seen(query, key, decay, s)
        _lower_left(scores, s).copy_((readers @ read.mT).view(c, n, -1, 2, s, s).permute(3, 0, 1, 4, 5, 2))
    torch.diagonal(scores[0], dim1=-2, dim2=-1).copy_((query * key).sum(-1))
    return scores[0], scores[1]


def _score_gradients(
    dM: Tensor, dL: Tensor, query: Tensor, key: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through M and L off their diagonals: of the queries, of the keys as readers and as read."""
    gradients = torch.zeros(3, *key.shape, dtype=key.dtype, device=key.device)
    dscores = torch.stack([dM, dL])
    for s, decay in _halves(g):
        readers, read = _seen(query, key, decay, s)
        d = _lower_left(dscores, s).permute(1, 2, 5, 0, 3, 4).reshape(-1, 2 * s, s)
        by_half = gradients.view(3, -1, 2, s, key.shape[-1])
        by_half[:2, :, 1].transpose(0, 1).addcmul_((d @ read).unflatten(1, (2, s)), decay[:, None, 1])
        by_half[2, :, 0].addcmul_(d.mT @ readers, decay[:, 0])
    return gradients[0], gradients[1], gradients[2]


def _seen(query: Tensor, key: Tensor, decay: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Queries above keys of the second halves, (m, 2 s, k), and keys of the first, (m, s, k), decayed."""
    q_half, k_half = query.view_as(decay), key.view_as(decay)
    readers = torch.empty_like(decay)
    torch.mul(q_half[:, 1], decay[:, 1], out=readers[:, 0])
    torch.mul(k_half[:, 1], decay[:, 1], out=readers[:, 1])
    return readers.flatten(1, 2), k_half[:, 0] * decay[:, 0]


def _lower_left(scores: Tensor, s: int) -> Tensor:
    """The blocks where second halves see first halves: (..., q, q) -> (..., s, s, q / 2s), a view."""
    by_half = scores.unflatten(-1, (-1, 2, s)).unflatten(-4, (-1, 2, s))
    return by_half.diagonal(dim1=-6, dim2=-3).select(-5, 1).select(-3, 0)


def _pass_states(T: Tensor, v: Tensor, beta: Tensor, key: Tensor, ends: _Ends) -> tuple[Tensor, Tensor]:
    """P of every chunk, shaped as v, and the states after them, (c, n, k, v)."""
    key_in, key_out, over = key * ends.since, key * ends.until, ends.since[:, :, -1, :, None]
    P = torch.empty_like(v)
    after = v.new_empty(*v.shape[:2], key.shape[-1], v.shape[-1])
    for c in range(len(v)):
        E = torch.baddbmm(v[c], key_in[c], after[c - 1], alpha=-1) if c else v[c]
        torch.bmm(T[c], E, out=P[c])
        torch.bmm(key_out[c].mT, beta[c] * P[c], out=after[c])
        if c:
            after[c].addcmul_(after[c - 1], over[c])
    return P, after


def _pass_gradients(
    U: Tensor,
    do: Tensor,
    dlast_bhkv: Tensor | None,
    query: Tensor,
    key: Tensor,
    beta: Tensor,
    T: Tensor,
    ends: _Ends,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """U and dE of every chunk, and the gradients of the states after them.

    U comes with what it receives through the outputs of its own chunk; what it receives through later ones
    is added in place. The gradients of states are None where none was read: a single chunk whose last state
    has no gradient.
    """
    if len(do) == 1 and dlast_bhkv is None:
        return U, T.mT @ (beta * U), None
    dE = torch.empty_like(do)
    query_in, key_in, key_out = query * ends.since, key * ends.since, key * ends.until
    over = ends.since[:, :, -1, :, None]
    dafter = do.new_zeros(*do.shape[:2], key.shape[-1], do.shape[-1])
    if dlast_bhkv is not None:
        dafter[-1] = dlast_bhkv.flatten(0, 1)
    for c in range(len(do) - 1, -1, -1):
        U[c].baddbmm_(key_out[c], dafter[c])
        torch.bmm(T[c].mT, beta[c] * U[c], out=dE[c])
        if c:
            torch.mul(dafter[c], over[c], out=dafter[c - 1])
            dafter[c - 1].baddbmm_(query_in[c].mT, do[c]).baddbmm_(key_in[c].mT, dE[c], alpha=-1)
    return U, dE, dafter
