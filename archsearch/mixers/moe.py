"""Mixtures of experts.

Routers as transformers has them differ in these ways, all of which the fields of `moe` reach:
  scores    softmax (Jamba, Granite, Qwen3-Next, MiniMax) or sigmoid (LFM2, Nemotron-H, Kimi Linear, Bailing).
            Granite takes the softmax over the chosen logits, which is that over all, renormalised.
  dtype     Nemotron-H, Kimi Linear and Bailing project in float32, LFM2 computes in the activations' dtype
            throughout, the others project in it and take the softmax in float32. Here all of it is float32.
  choice    by scores plus selection bias (LFM2 and the three above); those three within the best groups.
  weights   renormalised by MiniMax, Granite and Qwen3.5, by the others if asked, by Jamba never; epsilon in
            the denominator: 1e-6 LFM2, 1e-20 Nemotron-H, Kimi Linear and Bailing, none elsewhere. They
            multiply the experts' outputs, after the down projection.
Fused expert weights hold the gate's rows first in all of them.

Shape suffixes: b batch, l length, n tokens of all sequences, d width that is read or written, e experts,
k experts of a token, g groups of experts, m experts of a group, s slots (a token at one of its experts,
sorted by expert), u outputs of an expert's up projection, f its hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archsearch.mixers.base import Call, Stateless, Surroundings, init_linear
from archsearch.mixers.mlp import MlpMixer, hidden_features
from archsearch.spec.layers.moe import Moe


class MoeMixer(Stateless):
    """`moe`: sum_k w_k expert_k(x) over the chosen experts, plus a shared expert's output.

    router.weight (e, d) and, as a buffer, router.selection_bias (e,); experts.up_proj (e, u, d) and
    experts.down_proj (e, d, f); shared is an `mlp`, shared_gate.weight (1, d); latent_down, latent_up.
    """

    rounds_input = False  # the router's scores are float32
    recordable = False  # each expert has as many tokens as chose it

    def __init__(self, spec: Moe, around: Surroundings, project: bool = True):
        super().__init__(spec, around, project)
        d_model, width = around.d_model, spec.input_width(around.d_model)
        latent, bias = spec.latent, spec.bias
        self.router = Router(spec, width)
        self.latent_down = nn.Linear(width, latent, bias=bias) if latent else None
        self.latent_up = nn.Linear(latent, d_model, bias=bias) if latent and project else None
        out = spec.expert_width(d_model) if project or latent else None
        self.experts = Experts(spec, latent or width, out)
        shared = spec.shared_expert
        self.shared = MlpMixer(shared, around, project) if shared else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if spec.shared_gate else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        self.router.reset_parameters(generator)
        self.experts.reset_parameters(generator)
        for linear in (self.latent_down, self.latent_up, self.shared_gate):
            if linear is not None:
                init_linear(linear, generator)
        if self.shared is not None:
            self.shared.reset_parameters(generator)

    def forward(self, x_bld: Tensor, call: Call | None = None) -> Tensor:
        x_nd = x_bld.flatten(0, -2)
        scores_ne, expert_nk = self.router(x_nd)
        if self.training and torch.is_grad_enabled():
            self._learn_from(scores_ne, expert_nk, call)
        rows_nd = x_nd if self.latent_down is None else self.latent_down(x_nd)
        y_nd = self.experts(rows_nd, expert_nk, self.router.weigh(scores_ne, expert_nk))
        if self.latent_up is not None:
            y_nd = self.latent_up(y_nd)
        if self.shared is not None:
            y_nd = self._with_shared(y_nd, x_nd)
        return y_nd.unflatten(0, x_bld.shape[:-1])

    def _with_shared(self, y_nd: Tensor, x_nd: Tensor) -> Tensor:
        assert self.shared is not None
        shared_nd = self.shared(x_nd)
        if self.shared_gate is not None:
            shared_nd = shared_nd * self.shared_gate(x_nd).sigmoid()
        return y_nd + shared_nd if self.project else torch.cat([y_nd, shared_nd], dim=-1)

    def _learn_from(self, scores_ne: Tensor, expert_nk: Tensor, call: Call | None) -> None:
        """Balance the experts: count their loads, add to the losses. Padding counts for nothing."""
        if call is not None and call.mask is not None:
            kept_n = call.mask.flatten()
            scores_ne, expert_nk = scores_ne[kept_n], expert_nk[kept_n]
        if self.spec.bias_rate:
            self.router.load_e += expert_nk.flatten().bincount(minlength=self.spec.experts)
        if self.spec.balance and call is not None:
            call.losses.append(self.spec.balance * balance_loss(scores_ne, expert_nk))


class Router(nn.Module):
    """Chooses each token's experts, and weighs them.

    selection_bias moves by `rebalance`, so that it is a buffer and no parameter; load_e counts the tokens
    that each expert has had since.
    """

    selection_bias: Tensor | None
    load_e: Tensor

    def __init__(self, spec: Moe, width: int):
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.empty(spec.experts, width))
        self.register_buffer("selection_bias", torch.zeros(spec.experts) if spec.selection_bias else None)
        self.register_buffer("load_e", torch.zeros(spec.experts, dtype=torch.long), persistent=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        _init_matrices(self.weight, generator)
        self.load_e.zero_()
        if self.selection_bias is not None:
            self.selection_bias.zero_()

    def _apply(self, fn: Any, recurse: bool = True) -> Router:
        """Casts, but the selection bias stays in float32 at least: its small steps would be lost."""
        before = self.selection_bias
        super()._apply(fn, recurse)
        if before is not None and self.selection_bias is not None and self.selection_bias.itemsize < 4:
            self.selection_bias = before.to(self.selection_bias.device, torch.float32)
        return self

    def forward(self, x_nd: Tensor) -> tuple[Tensor, Tensor]:
        """The experts' scores (n, e), and the chosen experts (n, k), best first.

        In float32 at least, under autocast too: what rounding does to a score, it does to a choice.
        """
        dtype = torch.promote_types(x_nd.dtype, torch.float32)
        with torch.autocast(x_nd.device.type, enabled=False):
            logits_ne = F.linear(x_nd.to(dtype), self.weight.to(dtype))
        scores_ne = logits_ne.softmax(-1) if self.spec.router == "softmax" else logits_ne.sigmoid()
        with torch.no_grad():
            return scores_ne, self.choose(scores_ne)

    def choose(self, scores_ne: Tensor) -> Tensor:
        """The experts of highest score plus selection bias, within the best groups: (n, k)."""
        if self.selection_bias is not None:
            scores_ne = scores_ne + self.selection_bias
        kept = self.spec.top_groups or self.spec.groups
        if kept < self.spec.groups:
            scores_ngm = scores_ne.unflatten(-1, (self.spec.groups, -1))
            best_two = scores_ngm.topk(min(2, scores_ngm.shape[-1]), dim=-1).values
            kept_ng = best_two.sum(-1).topk(kept, dim=-1).indices
            closed_ng = torch.ones_like(best_two[..., 0], dtype=torch.bool).scatter(-1, kept_ng, False)
            scores_ne = scores_ngm.masked_fill(closed_ng.unsqueeze(-1), -torch.inf).flatten(-2)
        return scores_ne.topk(self.spec.top_k, dim=-1).indices

    def weigh(self, scores_ne: Tensor, expert_nk: Tensor) -> Tensor:
        """What each chosen expert's output is multiplied by: (n, k)."""
        weight_nk = scores_ne.gather(-1, expert_nk)
        if self.spec.renormalise:
            weight_nk = weight_nk / (weight_nk.sum(-1, keepdim=True) + self.spec.renormalise_eps)
        return weight_nk * self.spec.routed_scale

    @torch.no_grad()
    def rebalance(self) -> None:
        """bias += rate * sign(mean load - load), over the tokens since the last time (arXiv 2408.15664)."""
        if self.selection_bias is not None and self.spec.bias_rate:
            # Against the sum, in whole numbers: a mean would be rounded.
            below_e = (self.load_e.sum() - self.spec.experts * self.load_e).sign()
            self.selection_bias += self.spec.bias_rate * below_e
            self.load_e.zero_()


class Experts(nn.Module):
    """Bias-free MLPs, of which each token uses some. Without `out`, they give their hidden features."""

    def __init__(self, spec: Moe, width: int, out: int | None):
        super().__init__()
        self.activation = spec.activation
        hidden, up_width = spec.expert.inner_width(width), spec.expert.up_width(width)
        self.up_proj = nn.Parameter(torch.empty(spec.experts, up_width, width))
        self.down_proj = nn.Parameter(torch.empty(spec.experts, out, hidden)) if out else None

    def reset_parameters(self, generator: torch.Generator) -> None:
        _init_matrices(self.up_proj, generator)
        if self.down_proj is not None:
            _init_matrices(self.down_proj, generator)

    def forward(self, x_nd: Tensor, expert_nk: Tensor, weight_nk: Tensor) -> Tensor:
        """sum_k weight_nk * expert_nk(x_n). An expert without tokens computes nothing."""
        order_s = expert_nk.flatten().argsort(stable=True)
        slot_nk = torch.empty_like(order_s)
        slot_nk[order_s] = torch.arange(len(order_s), device=order_s.device)
        slot_nk = slot_nk.view_as(expert_nk)
        token_s = order_s // expert_nk.shape[1]
        y_sd = self._each(_Spread.apply(x_nd, token_s, slot_nk), expert_nk)
        weight_s = weight_nk.flatten().index_select(0, order_s)
        return _Collect.apply(y_sd * weight_s.unsqueeze(-1), token_s, slot_nk).to(y_sd.dtype)

    def _each(self, x_sd: Tensor, expert_nk: Tensor) -> Tensor:
        """Every expert on its own slots, which stand together."""
        counts = expert_nk.flatten().bincount(minlength=len(self.up_proj)).tolist()
        used = [expert for expert, count in enumerate(counts) if count]
        up_eud = _matrices(self.up_proj)
        down_edf = None if self.down_proj is None else _matrices(self.down_proj)
        outputs = []
        for expert, rows_sd in zip(used, x_sd.split([counts[expert] for expert in used]), strict=True):
            inner_sf = hidden_features(F.linear(rows_sd, up_eud[expert]), self.activation)
            outputs.append(inner_sf if down_edf is None else F.linear(inner_sf, down_edf[expert]))
        return torch.cat(outputs)


class _Spread(torch.autograd.Function):
    """Each slot's token: (n, d) -> (s, d). The gradient of `_Collect`, and it of this: both sum a token's
    slots in one order, which atomic additions on a GPU would not."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, token_s: Tensor, slot_nk: Tensor) -> Tensor:
        ctx.save_for_backward(slot_nk)
        return x_nd.index_select(0, token_s)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_sd: Tensor) -> tuple[Tensor | None, ...]:
        return F.embedding_bag(ctx.saved_tensors[0], dy_sd, mode="sum"), None, None


class _Collect(torch.autograd.Function):
    """The sum of each token's slots: (s, d) -> (n, d)."""

    @staticmethod
    def forward(ctx: Any, y_sd: Tensor, token_s: Tensor, slot_nk: Tensor) -> Tensor:
        ctx.save_for_backward(token_s)
        return F.embedding_bag(slot_nk, y_sd, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_nd: Tensor) -> tuple[Tensor | None, ...]:
        return dy_nd.index_select(0, ctx.saved_tensors[0]), None, None


def experts_reference(
    x_nd: Tensor, expert_nk: Tensor, weight_nk: Tensor, up_eud: Tensor, down_edf: Tensor, activation: str
) -> Tensor:
    """What `Experts` computes, every expert on every token: most of them weigh nothing."""
    weight_ne = torch.zeros(len(x_nd), len(up_eud), dtype=weight_nk.dtype, device=x_nd.device)
    weight_ne = weight_ne.scatter_add(1, expert_nk, weight_nk)
    inner_enf = hidden_features(x_nd @ up_eud.mT, activation)
    return torch.einsum("ne,end->nd", weight_ne, inner_enf @ down_edf.mT)


def balance_loss(scores_ne: Tensor, expert_nk: Tensor) -> Tensor:
    """e * sum_e load_e * probability_e (arXiv 2101.03961, equations 4 to 6): k where tokens spread evenly.

    load_e: the share of tokens that use the expert. probability_e: its mean score, each token's scores
    first divided by their sum, which of a softmax is 1.
    """
    tokens, experts = scores_ne.shape
    load_e = expert_nk.flatten().bincount(minlength=experts).to(scores_ne.dtype) / max(1, tokens)
    probability_ne = scores_ne / scores_ne.sum(-1, keepdim=True)
    return experts * (load_e * probability_ne.sum(0)).sum() / max(1, tokens)


def rebalance(model: nn.Module) -> None:
    """Move the selection biases of every router in `model`: once a training step, after the optimiser's."""
    for module in model.modules():
        if isinstance(module, Router):
            module.rebalance()


def _matrices(stack: Tensor) -> Sequence[Tensor]:
    """The stack, to be indexed. For gradients unbound at once: each matrix indexed out of the whole would
    hand back a gradient of the whole."""
    return stack.unbind() if torch.is_grad_enabled() else cast(Sequence[Tensor], stack)


def _init_matrices(weight: nn.Parameter, generator: torch.Generator) -> None:
    """As `init_linear` draws a matrix; of a stack of them, each."""
    bound = weight.shape[-1] ** -0.5
    with torch.no_grad():
        weight.uniform_(-bound, bound, generator=generator)
