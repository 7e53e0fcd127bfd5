"""Multi-head latent attention (arXiv 2405.04434).

Shape suffixes: b batch, l length, t cached tokens, d d_model, h heads, n channels without positions, r
channels with positions, e n + r, v value channels, k width of the latent of keys and values, c k + r.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from archsearch.mixers.attend import attention_kernel, causal_attention, explicit_attention
from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear
from archsearch.mixers.cache import Room, grown
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.rope import Rotary
from archsearch.spec.layers.mla import Mla


class MlaState(NamedTuple):
    """Of every token so far, (batch, tokens, kv_rank + rope_dim): the normed latent, and the rotated key."""

    latent_btc: Tensor
    room: Room | None = None


class MlaMixer(Mixer):
    """`mla`: with c = norm(W_a x), keys of head h are [K_h c; rope(k_r)] and its values V_h c, where k_r is
    one more projection of x, for all heads; queries are [q_n; rope(q_r)].

    A sequence expands keys and values. A step does not: q_n K_h c = (K_h^T q_n) c, so queries are brought to
    the latent and attend to it as to the keys and values of a single head, and V_h comes after.

    Rows of kv_a_proj: the latent, then k_r; of kv_b_proj, head by head: K_h, then V_h; of q_proj, head by
    head: q_n, then q_r. With q_rank, q_proj reads a normed latent of that width, which q_a_proj makes.
    """

    def __init__(self, spec: Mla, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        assert spec.heads is not None, "resolve the spec first"
        assert spec.kv_rank is not None
        assert spec.rope_dim is not None
        assert spec.value_dim is not None
        assert spec.scale is not None
        self.heads, self.kv_rank = spec.heads, spec.kv_rank
        self.nope_dim, self.rope_dim, self.value_dim = spec.nope_dim, spec.rope_dim, spec.value_dim
        self.scale, self.kernels = spec.scale, around.kernels
        self.kernel = attention_kernel(
            around.kernels,
            key_width=spec.nope_dim + spec.rope_dim,
            value_width=spec.value_dim,
            window=None,
            softcap=None,
            sinks=False,
        )
        query, value, gate, cached = spec.widths()
        fan_in, d_model = spec.input_width(around.d_model), around.d_model
        eps = around.eps if spec.norm_eps is None else spec.norm_eps

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, eps, unit_offset=around.unit_offset)

        self.q_a_proj, self.q_norm = None, None
        if spec.q_rank is not None:
            self.q_a_proj, self.q_norm = nn.Linear(fan_in, spec.q_rank, bias=spec.bias), norm(spec.q_rank)
        self.q_proj = nn.Linear(spec.q_rank or fan_in, query, bias=False)
        self.kv_a_proj = nn.Linear(fan_in, cached, bias=spec.bias)
        self.kv_norm = norm(spec.kv_rank)
        self.kv_b_proj = nn.Linear(spec.kv_rank, self.heads * spec.nope_dim + value, bias=False)
        self.gate_proj = nn.Linear(fan_in, gate, bias=False) if gate else None
        self.rope = Rotary(spec.rope, spec.rope_dim, around.kernels) if spec.rope else None
        self.out_proj = nn.Linear(value, d_model, bias=spec.bias) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        for linear in (
            self.q_a_proj,
            self.q_proj,
            self.kv_a_proj,
            self.kv_b_proj,
            self.gate_proj,
            self.out_proj,
        ):
            if linear is not None:
                init_linear(linear, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        return self._expanded(x_bld, self._latents(x_bld, 0), call)

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, MlaState]:
        latent_blc = self._latents(x_bld, 0)
        return self._expanded(x_bld, latent_blc, call), MlaState(latent_blc)

    def step(self, x_bd: Tensor, state: MlaState, call: Call | None = None) -> tuple[Tensor, MlaState]:
        x_bld, position = x_bd[:, None], state.latent_btc.shape[1]
        (latent_btc,), room = grown((state.latent_btc,), (self._latents(x_bld, position),), state.room)
        up_hnk, down_hvk = self.kv_b_proj.weight.unflatten(0, (self.heads, -1)).split(
            [self.nope_dim, self.value_dim], dim=1
        )
        q_bhe = self._queries(x_bld, position)[:, :, 0]
        q_bhn, q_bhr = q_bhe.split([self.nope_dim, self.rope_dim], dim=-1)
        q_bhc = torch.cat([torch.einsum("bhn,hnk->bhk", q_bhn, up_hnk), q_bhr], dim=-1)
        y_bhk = explicit_attention(
            q_bhc[:, :, None],
            latent_btc[:, None],
            latent_btc[:, None, :, : self.kv_rank],
            None if call is None or call.mask is None else call.mask[:, None, None],
            scale=self.scale,
        )[:, :, 0]
        y_bhv = torch.einsum("bhk,hvk->bhv", y_bhk, down_hvk)
        return self._out(y_bhv, x_bd), MlaState(latent_btc, room)

    def _latents(self, x_bld: Tensor, start: int) -> Tensor:
        """What is cached of each token (b, l, c)."""
        latent_blk, key_blr = self.kv_a_proj(x_bld).split([self.kv_rank, self.rope_dim], dim=-1)
        if self.rope is not None:
            key_blr = self.rope(key_blr[:, None], start)[:, 0]
        return torch.cat([self.kv_norm(latent_blk), key_blr], dim=-1)

    def _queries(self, x_bld: Tensor, start: int) -> Tensor:
        """(b, h, l, e)"""
        if self.q_a_proj is not None and self.q_norm is not None:
            x_bld = self.q_norm(self.q_a_proj(x_bld))
        q_bhle = self.q_proj(x_bld).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.rope is None:
            return q_bhle
        q_bhln, q_bhlr = q_bhle.split([self.nope_dim, self.rope_dim], dim=-1)
        return torch.cat([q_bhln, self.rope(q_bhlr, start)], dim=-1)

    def _expanded(self, x_bld: Tensor, latent_blc: Tensor, call: Call | None) -> Tensor:
        """Attention of a sequence to itself, with every head's keys and values."""
        latent_blk, key_blr = latent_blc.split([self.kv_rank, self.rope_dim], dim=-1)
        kv_bhlx = self.kv_b_proj(latent_blk).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_bhln, v_bhlv = kv_bhlx.split([self.nope_dim, self.value_dim], dim=-1)
        k_bhlr = key_blr[:, None].expand(-1, self.heads, -1, -1)
        y_bhlv = causal_attention(
            self._queries(x_bld, 0),
            torch.cat([k_bhln, k_bhlr], dim=-1),
            v_bhlv,
            scale=self.scale,
            window=None,
            kernels=self.kernels,
            mask_bl=None if call is None else call.mask,
        )
        return self._out(y_bhlv.transpose(1, 2), x_bld)

    def _out(self, y_hv: Tensor, x_d: Tensor) -> Tensor:
        """Heads (..., h, v) -> gated, side by side, projected."""
        if self.gate_proj is not None:
            y_hv = y_hv * self.gate_proj(x_d).sigmoid().view(*y_hv.shape[:-1], -1)
        y = y_hv.flatten(-2)
        return y if self.out_proj is None else self.out_proj(y)
