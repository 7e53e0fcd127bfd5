"""Attention against torch's functions called bare, and parallel blocks against their branches in turn."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_models import SHAPES, build, layouts
from gpu_report import (
    BARS,
    BF16,
    CUDA,
    DEVICE,
    TUNING_SECONDS,
    Report,
    autocast,
    explained,
    milliseconds,
    ratio,
    relative,
    seconds,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from archsearch.compiler.blocks import ParallelLayer
from archsearch.compiler.model import LanguageModel
from archsearch.mixers.attend import causal_attention
from archsearch.mixers.base import Call
from archsearch.mixers.kernels import Kernels
from archsearch.spec import ModelSpec

Step = Callable[[], Any]

ATTENTION = [
    (8, 12, 12, 2048, 64),
    (4, 16, 16, 2048, 128),
    (2, 16, 16, 8192, 128),
    (2, 32, 8, 8192, 128),
    (1, 16, 16, 32768, 128),
]
"""Batch, heads, key heads, length, head_dim."""


def attention(report: Report) -> None:
    for shape in [(1, 2, 1, 64, 16)] if report.smoke else ATTENTION:
        for window in (None, 16 if report.smoke else 1024):
            report.case(
                f"attention/{'x'.join(map(str, shape))}/{window or 'all'}",
                partial(attention_case, report, shape, window),
            )


def attention_case(
    report: Report, shape: tuple[int, int, int, int, int], window: int | None
) -> dict[str, Any]:
    """Forward and backward; heads lie in memory as layers have them, a token's beside each other.

    Held against the faster of torch's scaled_dot_product_attention and flash_attn_func called bare. A window
    is held against the same with the window (as a mask, for torch's), and torch's flash kernel; and, for what
    it costs, against no window at all.
    """
    b, h, g, length, e = shape
    q, k, v, dy = (
        torch.randn(b, length, x, e, device=DEVICE, dtype=BF16).transpose(1, 2).requires_grad_()
        for x in (h, g, g, h)
    )
    scale = e**-0.5

    def step(run: Callable[[], Tensor]) -> Step:
        return lambda: torch.autograd.grad(run(), (q, k, v), dy)

    def bare(mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=h != g
        )

    def under(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return bare()

    def flash() -> Tensor:
        heads = (t.transpose(1, 2) for t in (q, k, v))
        reach = {"window_size_left": window - 1, "window_size_right": 0} if window else {}
        y = torch.ops.aten._flash_attention_forward(
            *heads, None, None, length, length, 0.0, True, False, scale=scale, **reach
        )[0]
        return y.transpose(1, 2)

    def flash_attn() -> Tensor:
        heads = (t.transpose(1, 2) for t in (q, k, v))
        reach = (-1, -1) if window is None else (window - 1, 0)
        call = importlib.import_module("flash_attn").flash_attn_func
        return call(*heads, softmax_scale=scale, causal=True, window_size=reach).transpose(1, 2)

    def own(kernels: Kernels) -> Tensor:
        return causal_attention(q, k, v, scale=scale, window=window, kernels=kernels)

    auto, native = Kernels("auto", DEVICE), Kernels("native", DEVICE)
    steps = {"own": step(partial(own, auto)), "own native": step(partial(own, native)), "sdpa": step(bare)}
    others: dict[str, Callable[[], Tensor]] = {"flash": flash, "flash_attn": flash_attn} if CUDA else {}
    if window is not None:
        at = torch.arange(length, device=DEVICE)
        age = at[:, None] - at
        mask = (age >= 0) & (age < window)
        others["sdpa masked"] = lambda: bare(mask)
    elif CUDA:
        backends = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
        others |= {backend.name.lower(): partial(under, backend) for backend in backends}
    row: dict[str, Any] = {}
    for name, run in others.items():
        try:
            step(run)()
            steps[name] = step(run)
        except Exception as error:
            row[f"{name} error"] = explained(error)
    taken = dict(zip(steps, seconds(list(steps.values()), 4 * report.rounds), strict=True))
    row |= {f"{name} ms": milliseconds(readings) for name, readings in taken.items()}
    if window is None:
        row["TFLOP/s"] = round(7 * b * h * length**2 * e / row["own ms"] / 1e9, 1)
        same = [name for name in ("sdpa", "flash_attn") if name in taken]
        row |= {f"own / {name}": ratio(taken["own"], taken[name]) for name in same}
    else:
        same = [name for name in ("flash", "flash_attn", "sdpa masked") if name in taken]
        row |= {f"own / {name}": ratio(taken["own"], taken[name]) for name in same}
        row["own / unwindowed sdpa"] = ratio(taken["own"], taken["sdpa"])
    row["by"] = auto.choose("attention", forms={"window"} if window else set()).name
    return {**row, "met": max(row[f"own / {name}"] for name in same) <= BARS["attention"]}


def parallel(report: Report, sizes: list[str]) -> None:
    """At 2k tokens, and at 8k in sequences of 2k."""
    for size in sizes:
        for batch, length in [(2, 32)] if report.smoke else [(1, 2048), (4, 2048), (1, 8192)]:
            report.case(
                f"parallel/{size}/{batch}x{length}",
                partial(parallel_case, report, size, batch, length),
                limit=TUNING_SECONDS,
            )


def parallel_case(report: Report, size: str, batch: int, length: int) -> dict[str, Any]:
    """Forward and backward of Mamba-2 beside attention, overlapped and not, against the same two layers as
    blocks one after the other; launched one kernel at a time, and as CUDA graphs, as training runs them."""
    shape = SHAPES[size]
    both = layouts(shape)["parallel"][0]["layers"][0]
    fields = {"d_model": shape.d_model, "vocab_size": 8}
    joined = build(ModelSpec.model_validate({**fields, "layers": [both]}))
    apart = build(ModelSpec.model_validate({**fields, "layers": both["parallel"]["branches"]}))
    x = torch.randn(batch, length, shape.d_model, device=DEVICE, requires_grad=True)
    dy = torch.randn_like(x)
    steps = [
        _block_step(joined, x, dy, overlap=True),
        _block_step(joined, x, dy, overlap=False),
        _block_step(apart, x, dy, overlap=False),
    ]
    rounds = 4 * report.rounds
    row = _parallel_row("", seconds(steps, rounds))
    row["overlap changes"] = max(relative(a, b) for a, b in zip(steps[0](), steps[1](), strict=True))
    if CUDA:
        try:
            graphs = [_captured(step) for step in steps]
            row |= _parallel_row("graphs: ", seconds(graphs, rounds))
        except Exception as error:
            row["graphs: error"] = explained(error)
    prefix = "graphs: " if CUDA and "graphs: error" not in row else ""
    return {**row, "met": row[f"{prefix}overlapped / one after the other"] <= BARS["parallel"]}


def _parallel_row(prefix: str, taken: list[list[float]]) -> dict[str, Any]:
    overlapped, plain, turns = taken
    return {
        f"{prefix}overlapped ms": milliseconds(overlapped),
        f"{prefix}in one stream ms": milliseconds(plain),
        f"{prefix}in turn ms": milliseconds(turns),
        f"{prefix}overlapped / one after the other": ratio(overlapped, turns),
        f"{prefix}in one stream / one after the other": ratio(plain, turns),
    }


def _block_step(model: LanguageModel, x: Tensor, dy: Tensor, *, overlap: bool) -> Step:
    leaves = [x, *(p for layer in model.layers for p in layer.parameters())]
    holders = [module for module in model.modules() if isinstance(module, ParallelLayer)]

    def run() -> tuple[Tensor, ...]:
        for module in holders:
            module.overlap = overlap
        with autocast():
            y = x
            for layer in model.layers:
                y = layer(y, Call())
        return torch.autograd.grad(y, leaves, dy.to(y.dtype))

    return run


def _captured(step: Step) -> Step:
    """The step as a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
