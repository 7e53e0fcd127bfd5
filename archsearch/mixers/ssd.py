"""The state-space dual of Mamba-2 (arXiv 2405.21060): S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T, y_t = S_t C_t.

Shape suffixes: b batch, l length, h heads, p head_dim, g groups, r heads a group, n state size, c chunks,
q tokens a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
        y_bhp, state_bhpn = ssd_step(
            x_blhp[:, t], dt_blh[:, t], A_h, B_blhn[:, t], C_blhn[:, t], state_bhpn
        )
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

    Any length; a sequence that fits one chunk skips the recurrence. Within a chunk the token mixing matrix
    is (C B^T) * L; C B^T is computed once a group, never repeated to the heads.
    """
    batch, length, heads, head_dim = x_blhp.shape
    groups, n = B_blgn.shape[2:]
    q = min(chunk, length)
    chunks = -(-length // q)
    if pad := chunks * q - length:
        # dt = 0 there: the state neither decays nor grows.
        x_blhp, B_blgn, C_blgn = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (x_blhp, B_blgn, C_blgn))
        dt_blh = F.pad(dt_blh, (0, 0, 0, pad))

    split = (batch, chunks, q, groups, heads // groups)
    dt = dt_blh.view(split).permute(0, 1, 3, 4, 2)  # b c g r q
    log_decay = (dt * A_h.view(groups, -1, 1)).cumsum(-1)
    dtx = x_blhp.view(*split, head_dim).permute(0, 1, 3, 4, 2, 5) * dt[..., None]  # b c g r q p
    B = B_blgn.view(batch, chunks, q, groups, n).transpose(2, 3)  # b c g q n
    C = C_blgn.view(batch, chunks, q, groups, n).transpose(2, 3)

    future = torch.ones(q, q, dtype=torch.bool, device=x_blhp.device).triu(1)
    # Masked before the exponential: above the diagonal the differences are positive and may overflow.
    decay = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(future, -torch.inf).exp()
    mixing = (C @ B.mT)[:, :, :, None] * decay  # b c g r q q
    y = mixing @ dtx  # b c g r q p

    to_end = (log_decay[..., -1:] - log_decay).exp()
    kept = (dtx * to_end[..., None]).transpose(3, 4).flatten(4)  # b c g q (r p)
    states = B.mT @ kept  # b c g n (r p): what each chunk adds
    over_chunk = log_decay[..., -1].exp()  # b c g r
    before, last = _pass_states(states.unflatten(-1, (-1, head_dim)), over_chunk)
    if chunks > 1:
        from_before = (C @ before.flatten(-2)).unflatten(-1, (-1, head_dim)).transpose(3, 4)
        y = y + from_before * log_decay.exp()[..., None]
    y_blhp = y.permute(0, 1, 4, 2, 3, 5).reshape(batch, chunks * q, heads, head_dim)[:, :length]
    return y_blhp, last.permute(0, 1, 3, 4, 2).flatten(1, 2)


def _pass_states(added: Tensor, over_chunk: Tensor) -> tuple[Tensor, Tensor]:
    """States before each chunk and after the last: S_c = over_chunk_c * S_{c-1} + added_c.

    added: (b, c, g, n, r, p). over_chunk: (b, c, g, r).
    """
    state = torch.zeros_like(added[:, 0])
    before = []
    for c in range(added.shape[1]):
        before.append(state)
        state = state * over_chunk[:, c, :, None, :, None] + added[:, c]
    return torch.stack(before, dim=1), state
