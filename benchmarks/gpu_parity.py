"""Every layer kind, with the kernels that are usable and with native torch, against float64 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from gpu_report import BARS, BF16, DEVICE, FP32, TUNING_SECONDS, Report, autocast, relative
from torch import Tensor, nn

from archsearch.mixers.base import Surroundings
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec

D_MODEL = 128

KINDS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 4, "kv_heads": 2},
    "attention windowed": {"heads": 4, "window": 40},
    "attention gated, sinks": {"heads": 4, "gate": "head", "sinks": True},
    "attention capped": {"heads": 4, "softcap": 20.0},
    "mla": {"heads": 4, "nope_dim": 32, "rope_dim": 32, "value_dim": 32, "kv_rank": 64},
    "mamba1": {},
    "mamba1 heads": {"heads": 2},
    "mamba2": {"d_state": 64, "head_dim": 32},
    "mamba2 groups": {"d_state": 64, "head_dim": 32, "groups": 2, "gated_norm": "before"},
    "mamba2 apart": {"d_state": 64, "head_dim": 32, "groups": 2, "norm_groups": 1},
    "mamba2 no norm": {"d_state": 64, "head_dim": 32, "gated_norm": "none"},
    "gated_deltanet": {},
    "kda": {},
    "lightning": {},
    "gated_conv": {},
    "rglru": {},
    "mlp": {"activation": "swiglu"},
    "moe": {"experts": 4, "top_k": 2},
}
"""Kind (its first word) and what is special -> fields. All of Mamba-2 have widths for which its kernels are
tuned once; `apart` has no kernel for the whole layer, and runs those of its parts."""

SEEDS = range(3)
"""Of weights and inputs."""

MANY = 64
"""From so many numbers on a tensor is large. The gradient of a few (a rate a head) is a sum over all tokens,
which may nearly cancel; single roundings of bf16, of weights alone, are then above the bar."""


def parity(report: Report, kinds: Collection[str]) -> None:
    """kinds: of layers; all if there are none."""
    for name, fields in KINDS.items():
        if kinds and name.split()[0] not in kinds:
            continue
        for dtype in (FP32, BF16):
            for mode in ("auto", "native"):
                label = str(dtype).removeprefix("torch.")
                report.case(
                    f"parity/{name}/{label}/{mode}",
                    partial(layer_parity, report, name, fields, dtype, mode),
                    limit=TUNING_SECONDS,
                )


def layer_parity(
    report: Report, name: str, fields: dict[str, Any], dtype: torch.dtype, mode: Any
) -> dict[str, Any]:
    """The largest relative error of the output and of every gradient over all seeds, which that is, the
    largest by seed, and the largest of tensors that are large. In bf16 under autocast, as in training."""
    kind, length = name.split()[0], 40 if report.smoke else 300
    text = json.dumps(fields)
    found = [seed_errors(kind, text, length, seed, dtype, mode) for seed in SEEDS]
    expected = reference(kind, text, length, SEEDS[0])[-1]
    errors = {key: max(by_seed[key] for by_seed, _ in found) for key in found[0][0]}
    worst = max(errors, key=lambda key: errors[key])
    return {
        "error": errors[worst],
        "of": worst,
        "by seed": [max(by_seed.values()) for by_seed, _ in found],
        "of large tensors": max(errors[key] for key, tensor in expected.items() if tensor.numel() >= MANY),
        "output": errors["y"],
        "met": errors[worst] <= BARS[str(dtype).removeprefix("torch.")],
        "by": found[0][1],
    }


def seed_errors(
    kind: str, fields: str, length: int, seed: int, dtype: torch.dtype, mode: Any
) -> tuple[dict[str, float], list[str]]:
    """The error of the output and of every gradient; and what computed them."""
    truth, x, dy, expected = reference(kind, fields, length, seed)
    own = layer_of(kind, fields, Kernels(mode, DEVICE))
    own.load_state_dict({key: value.float() for key, value in truth.state_dict().items()})
    own = own.to(DEVICE)
    with autocast() if dtype == BF16 else nullcontext():
        y, leaf = forward(own, x.to(DEVICE))
    found = gradients(own, y, leaf, dy.to(DEVICE))
    used = {str(c.name) for m in own.modules() for c in vars(m).values() if isinstance(c, Choice)}
    return {key: relative(found[key], expected[key]) for key in expected}, sorted(used)


@cache
def reference(
    kind: str, fields: str, length: int, seed: int
) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    """The layer in float64, its input and output's gradient, both exact in bf16, and its results."""
    torch.manual_seed(seed)
    truth = layer_of(kind, fields, Kernels()).double()
    truth.reset_parameters(torch.Generator().manual_seed(seed))
    x, dy = torch.randn(2, 2, length, D_MODEL).to(BF16).float()
    return truth, x, dy, results(truth, x.double(), dy.double())


def layer_of(kind: str, fields: str, kernels: Kernels) -> Any:
    layers = [{kind: json.loads(fields)}]
    spec = ModelSpec.model_validate({"d_model": D_MODEL, "vocab_size": 8, "layers": layers})
    return MIXERS[kind](spec.nodes[0].layer, Surroundings(D_MODEL, kernels=kernels))


def forward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    return layer(leaf), leaf


def gradients(layer: nn.Module, y: Tensor, leaf: Tensor, dy: Tensor) -> dict[str, Tensor]:
    named = {"x": leaf, **dict(layer.named_parameters())}
    found = torch.autograd.grad(y, list(named.values()), dy.to(y.dtype), allow_unused=True)
    kept = {key: g for key, g in zip(named, found, strict=True) if g is not None}
    return {"y": y.detach(), **{f"d {key}": g for key, g in kept.items()}}


def results(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    return gradients(layer, *forward(layer, x), dy)
