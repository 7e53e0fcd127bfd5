"""The recurrent block of Griffin and RecurrentGemma.

Shape suffixes: b batch, l length, d d_model, c channels of the recurrence, k kernel width - 1, h heads,
t tokens of all sequences, g the two gates, j channels of a head's gates (its input gate's, then its
recurrence gate's).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archsearch.mixers.base import Call, Mixer, Surroundings, init_linear, masked
from archsearch.mixers.linear_scan import scan_, scan_gradient_, time_blocks
from archsearch.mixers.short_conv import ShortConv
from archsearch.spec.layers.rglru import RgLru

SHARPNESS = 8.0
"""The constant c of the paper."""

LEAST_ROOT = 1 / 2000
"""The derivative of sqrt(1 - a^2) is taken as if the root were no less: the bound of the released code."""


class RgLruState(NamedTuple):
    """The convolution's last inputs (batch, d_conv - 1, width); the recurrence's state (batch, width)."""

    conv_bkc: Tensor
    h_bc: Tensor


class RgLruMixer(Mixer):
    """`rglru`: W_out (gelu(W_y u) * rg_lru(conv(W_x u))), with the tanh form of GELU, as released.

    Parameters are named and laid out as in transformers' `RecurrentGemmaRecurrentBlock` (whose
    conv_1d.weight has an axis of size 1 more).
    """

    def __init__(self, spec: RgLru, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        width = spec.inner_width(around.d_model)
        self.linear_y = nn.Linear(spec.input_width(around.d_model), width)
        self.linear_x = nn.Linear(spec.input_width(around.d_model), width)
        self.conv_1d = ShortConv(width, spec.d_conv, bias=True, silu=False, kernels=around.kernels)
        self.rg_lru = RealGatedLru(width, spec.block_width(around.d_model))
        self.linear_out = nn.Linear(width, around.d_model) if project else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        init_linear(self.linear_y, generator)
        init_linear(self.linear_x, generator)
        self.conv_1d.reset_parameters(generator)
        self.rg_lru.reset_parameters(generator, *self.spec.a_init)
        if self.linear_out is not None:
            init_linear(self.linear_out, generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        conv_blc = masked(self.conv_1d(masked(self.linear_x(x_bld), call)), call)
        return self._finish(self.linear_y(x_bld), self.rg_lru(conv_blc, _first_tokens(call)), call)

    def prefill(self, x_bld: Tensor, call: Call | None = None) -> tuple[Tensor, RgLruState]:
        conv_blc, conv_bkc = self.conv_1d.prefill(masked(self.linear_x(x_bld), call))
        h_blc = self.rg_lru(masked(conv_blc, call), _first_tokens(call))
        # A copy: a view would keep the states of all tokens alive.
        return self._finish(self.linear_y(x_bld), h_blc, call), RgLruState(conv_bkc, h_blc[:, -1].clone())

    def step(self, x_bd: Tensor, state: RgLruState, call: Call | None = None) -> tuple[Tensor, RgLruState]:
        conv_bc, conv_bkc = self.conv_1d.step(self.linear_x(x_bd), state.conv_bkc)
        h_bc = self.rg_lru.step(conv_bc, state.h_bc)
        return self._finish(self.linear_y(x_bd), h_bc, call), RgLruState(conv_bkc, h_bc)

    def _finish(self, y: Tensor, h: Tensor, call: Call | None) -> Tensor:
        """Gate and output projection."""
        self.tell(call, "memory", h)
        y = F.gelu(y, approximate="tanh") * h.to(y.dtype)
        return y if self.linear_out is None else self.linear_out(y)


def _first_tokens(call: Call | None) -> Tensor | None:
    """Where each sequence starts after its padding (batch,); None: all at position 0."""
    return None if call is None or call.mask is None else call.mask.long().argmax(-1)


class RealGatedLru(nn.Module):
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t with a_t = exp(-8 r_t softplus(recurrent_param)).

    i and r are sigmoids of block-diagonal projections of x; exp(-softplus(p)) is sigmoid(-p), the paper's a
    with Lambda = -p. At position 0 the multiplier sqrt(1 - a^2) is 1, as in the released code. States are
    float32 at least.
    """

    def __init__(self, width: int, block: int):
        super().__init__()
        heads = width // block
        self.recurrent_param = nn.Parameter(torch.empty(width))
        self.input_gate_weight = nn.Parameter(torch.empty(heads, block, block))
        self.input_gate_bias = nn.Parameter(torch.zeros(heads, block))
        self.recurrent_gate_weight = nn.Parameter(torch.empty(heads, block, block))
        self.recurrent_gate_bias = nn.Parameter(torch.zeros(heads, block))

    def reset_parameters(self, generator: torch.Generator, low: float, high: float) -> None:
        """Gates as a linear layer's; a^2 uniform in [low^2, high^2]."""
        bound = self.input_gate_weight.shape[1] ** -0.5
        with torch.no_grad():
            for weight in (self.input_gate_weight, self.recurrent_gate_weight):
                weight.uniform_(-bound, bound, generator=generator)
            self.input_gate_bias.zero_()
            self.recurrent_gate_bias.zero_()
            decay = self.recurrent_param.uniform_(low**2, high**2, generator=generator).log_().mul_(0.5)
            decay.neg_().expm1_().log_()  # the inverse of softplus

    def forward(self, x_blc: Tensor, first_b: Tensor | None = None) -> Tensor:
        """Every state (batch, length, width), from h = 0. first_b: positions of the first tokens."""
        return rg_lru(x_blc, self._gates(x_blc.flatten(0, 1)), self.recurrent_param, first_b)

    def step(self, x_bc: Tensor, h_bc: Tensor) -> Tensor:
        """One token after the first: the new state."""
        return rg_lru_step(x_bc, self._gates(x_bc), self.recurrent_param, h_bc)

    def _gates(self, x_tc: Tensor) -> Tensor:
        """What the sigmoids of i and r take, side by side, head by head: (heads, tokens, 2 block)."""
        weight = torch.cat([self.input_gate_weight, self.recurrent_gate_weight], dim=-1)
        bias = torch.cat([self.input_gate_bias, self.recurrent_gate_bias], dim=-1)
        x_htj = x_tc.unflatten(-1, (weight.shape[0], -1)).transpose(0, 1)
        return torch.baddbmm(bias[:, None], x_htj, weight)


def rg_lru_step(x_bc: Tensor, gates_htj: Tensor, param_c: Tensor, h_bc: Tensor | None) -> Tensor:
    """One token of the recurrence as written; h_bc is None at position 0."""
    wide = torch.promote_types(x_bc.dtype, torch.float32)
    i_bc, r_bc = gates_htj.to(wide).sigmoid().transpose(0, 1).chunk(2, dim=-1)
    log_a_bc = -SHARPNESS * r_bc.flatten(1) * F.softplus(param_c.to(wide))
    gated_bc = i_bc.flatten(1) * x_bc.to(wide)
    if h_bc is None:
        return gated_bc
    return log_a_bc.exp() * h_bc + (-torch.expm1(2 * log_a_bc)).sqrt() * gated_bc


def rg_lru_reference(x_blc: Tensor, gates_htj: Tensor, param_c: Tensor) -> Tensor:
    """The recurrence token by token: the truth that the fast path is held against. Returns every h."""
    h_bc, states = None, []
    gates_hblj = gates_htj.unflatten(1, x_blc.shape[:2])
    for t in range(x_blc.shape[1]):
        h_bc = rg_lru_step(x_blc[:, t], gates_hblj[:, :, t], param_c, h_bc)
        states.append(h_bc)
    return torch.stack(states, dim=1)


@torch.compiler.disable(reason="its backward pass is its own, and it writes into buffers")
def rg_lru(x_blc: Tensor, gates_htj: Tensor, param_c: Tensor, first_b: Tensor | None = None) -> Tensor:
    """The same a block of time at a time. Differentiable once.

    first_b: the position of each sequence's first token, after padding whose x is zero; None: 0.
    """
    return _RgLru.apply(x_blc, gates_htj, param_c, first_b)


class _RgLru(torch.autograd.Function):
    """Keeps its inputs and h: gates, decays and multipliers are computed again, a block at a time.

    With m = sqrt(1 - a^2), u = m i x and g the gradient of u (see `linear_scan`): dx = g m i, di = g m x, and
    the gradient of log a is a g (h_{t-1} - a i x / m). At a sequence's first token m is 1 whatever a is, and
    the second term is not there.
    """

    @staticmethod
    def forward(
        ctx: Any, x_blc: Tensor, gates_htj: Tensor, param_c: Tensor, first_b: Tensor | None
    ) -> Tensor:
        wide = torch.promote_types(x_blc.dtype, torch.float32)
        rate_c = -SHARPNESS * F.softplus(param_c.to(wide))
        h_blc = torch.empty(x_blc.shape, dtype=wide, device=x_blc.device)
        h_bc = None
        for block in time_blocks(x_blc.shape[1], x_blc[:, 0].numel()):
            c = _coefficients(x_blc, gates_htj, rate_c, block, first_b)
            torch.mul(c.gated, c.multiplier, out=h_blc[:, block])
            h_bc = scan_(c.a, h_blc[:, block], h_bc)
        ctx.save_for_backward(x_blc, gates_htj, param_c, first_b, h_blc)
        return h_blc

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh_blc: Tensor) -> tuple[Tensor | None, ...]:
        x_blc, gates_htj, param_c, first_b, h_blc = ctx.saved_tensors
        rate_c = -SHARPNESS * F.softplus(param_c.to(h_blc.dtype))
        dx_blc, dgates_htj = torch.empty_like(x_blc), torch.empty_like(gates_htj)
        drate_c, after_bc = torch.zeros_like(rate_c), None
        for block in reversed(time_blocks(x_blc.shape[1], x_blc[:, 0].numel())):
            c = _coefficients(x_blc, gates_htj, rate_c, block, first_b)
            g_blc = dh_blc[:, block].clone(memory_format=torch.contiguous_format)
            after_bc = scan_gradient_(c.a, g_blc, after_bc)

            dlog_a = (c.a * c.gated).div_(c.multiplier.clamp_(min=LEAST_ROOT)).neg_()
            dlog_a[_starts(first_b, block)] = 0.0
            if block.start:
                dlog_a += h_blc[:, block.start - 1 : block.stop - 1]
            else:
                dlog_a[:, 1:] += h_blc[:, : block.stop - 1]
            dlog_a.mul_(c.a).mul_(g_blc)
            dgated = g_blc.mul_(c.multiplier)
            torch.mul(dgated, c.i, out=dx_blc[:, block])

            dr = dlog_a.mul_(c.r)
            drate_c += dr.sum((0, 1))
            dr.mul_(rate_c).addcmul_(dr, c.r, value=-1)
            di = dgated.mul_(c.gated).addcmul_(dgated, c.i, value=-1)
            for written, view in zip((di, dr), _by_part(dgates_htj, block, x_blc.shape[1]), strict=True):
                view.copy_(written.unflatten(-1, view.shape[-2:]))
        dparam_c = -SHARPNESS * drate_c * param_c.to(rate_c.dtype).sigmoid()
        return dx_blc, dgates_htj, dparam_c.to(param_c.dtype), None


class _Coefficients(NamedTuple):
    """Of a block of time, (batch, length, channels) each: decay, gates, sqrt(1 - a^2), and i x."""

    a: Tensor
    i: Tensor
    r: Tensor
    multiplier: Tensor
    gated: Tensor


def _coefficients(
    x_blc: Tensor, gates_htj: Tensor, rate_c: Tensor, block: slice, first_b: Tensor | None
) -> _Coefficients:
    wide = rate_c.dtype
    i, r = (
        torch.sigmoid(part.to(wide), out=torch.empty(part.shape, dtype=wide, device=part.device)).flatten(2)
        for part in _by_part(gates_htj, block, x_blc.shape[1])
    )
    log_a = r * rate_c
    a = log_a.exp()
    multiplier = log_a.mul_(2).expm1_().neg_().sqrt_()
    multiplier[_starts(first_b, block)] = 1.0
    return _Coefficients(a, i, r, multiplier, x_blc[:, block] * i)


def _starts(first_b: Tensor | None, block: slice) -> tuple[Any, Any]:
    """The sequences that start within a block, and where in it."""
    if first_b is None:
        return slice(None), slice(0, 0 if block.start else 1)
    (sequences,) = ((first_b >= block.start) & (first_b < block.stop)).nonzero(as_tuple=True)
    return sequences, first_b[sequences] - block.start


def _by_part(gates_htj: Tensor, block: slice, length: int) -> tuple[Tensor, ...]:
    """Views of a block's input gates and recurrence gates, (batch, length, heads, channels a head) each."""
    gates_hblgj = gates_htj.unflatten(-1, (2, -1)).unflatten(1, (-1, length))
    return gates_hblgj[:, :, block].permute(3, 1, 2, 0, 4).unbind()
