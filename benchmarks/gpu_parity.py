"""Every layer kind, with the kernels that are usable and with native torch, against float64 on the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from gpu_report import BARS, BF16, DEVICE, FP32, Report, autocast, relative
from torch import Tensor, nn

from archsearch.mixers.base import Surroundings
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec

KINDS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 4, "kv_heads": 2},
    "attention windowed": {"heads": 4, "window": 40},
    "attention gated, sinks": {"heads": 4, "gate": "head", "sinks": True},
    "attention capped": {"heads": 4, "softcap": 20.0},
    "mla": {"heads": 4, "nope_dim": 32, "rope_dim": 32, "value_dim": 32, "kv_rank": 64},
    "mamba1": {},
    "mamba1 heads": {"heads": 2},
    "mamba2": {"d_state": 64, "head_dim": 32},
    "mamba2 groups": {"d_state": 64, "head_dim": 64, "groups": 2, "gated_norm": "before"},
    "mamba2 no norm": {"d_state": 64, "head_dim": 32, "gated_norm": "none"},
    "gated_deltanet": {},
    "kda": {},
    "lightning": {},
    "gated_conv": {},
    "rglru": {},
    "mlp": {"activation": "swiglu"},
    "moe": {"experts": 4, "top_k": 2},
}
"""Kind (its first word) and what is special -> fields."""


def parity(report: Report) -> None:
    for name, fields in KINDS.items():
        for dtype in (FP32, BF16):
            for mode in ("auto", "native"):
                label = str(dtype).removeprefix("torch.")
                report.case(
                    f"parity/{name}/{label}/{mode}",
                    partial(layer_parity, report, name, fields, dtype, mode),
                )


def layer_parity(
    report: Report, name: str, fields: dict[str, Any], dtype: torch.dtype, mode: Any
) -> dict[str, Any]:
    """The largest relative error of the output and of every gradient, and which that is. In bf16 under
    autocast, as in training."""
    kind, d_model, length = name.split()[0], 128, 40 if report.smoke else 300
    spec = ModelSpec.model_validate({"d_model": d_model, "vocab_size": 8, "layers": [{kind: fields}]})
    layer = spec.nodes[0].layer
    torch.manual_seed(0)
    truth = MIXERS[kind](layer, Surroundings(d_model)).double()
    truth.reset_parameters(torch.Generator().manual_seed(0))
    own = MIXERS[kind](layer, Surroundings(d_model, kernels=Kernels(mode, DEVICE)))
    own.load_state_dict({key: value.float() for key, value in truth.state_dict().items()})
    own = own.to(DEVICE)
    x, dy = torch.randn(2, 2, length, d_model)
    if dtype == BF16:
        x, dy = x.to(BF16).float(), dy.to(BF16).float()
    expected = results(truth, x.double(), dy.double())
    with autocast() if dtype == BF16 else nullcontext():
        y, leaf = forward(own, x.to(DEVICE))
    found = gradients(own, y, leaf, dy.to(DEVICE))
    errors = {key: relative(found[key], expected[key]) for key in expected}
    worst = max(errors, key=lambda key: errors[key])
    used = sorted({str(c.name) for m in own.modules() for c in vars(m).values() if isinstance(c, Choice)})
    bar = BARS[str(dtype).removeprefix("torch.")]
    return {
        "error": errors[worst],
        "of": worst,
        "output": errors["y"],
        "met": errors[worst] <= bar,
        "by": used,
    }


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
