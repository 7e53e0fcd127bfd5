"""Training steps against other packages' models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import gpu_rivals
import torch
import torch.nn.functional as F
from gpu_models import SHAPES, build, optimiser_of, spec_of, training_step
from gpu_report import (
    BARS,
    BF16,
    CUDA,
    DEVICE,
    TUNING_SECONDS,
    Report,
    autocast,
    explained,
    limited,
    milliseconds,
    ratio,
    seconds,
    synchronise,
    tidy,
)
from torch import Tensor

from archsearch.compiler.loss import cross_entropy
from archsearch.data import IGNORE
from archsearch.spec import model_cost
from archsearch.training.graphs import RecordedPasses

RIVAL_SECONDS = 150.0
"""The longest that one other model may take."""


def peak(report: Report) -> float:
    """bf16 matmul FLOP/s that this device reaches."""

    def run() -> dict[str, Any]:
        side = 256 if report.smoke else 8192
        a, b = torch.randn(2, side, side, device=DEVICE, dtype=BF16)
        taken = seconds([lambda: a @ b], 10, warm=5)[0]
        return {"flops": 2 * side**3 / median(taken)}

    report.case("peak", run)
    return float(report.rows.get("peak", {}).get("flops", float("nan")))


def train(report: Report, sizes: list[str], contexts: list[int], kinds: list[str], *, compiled: bool) -> None:
    top = peak(report)
    tune(report, sizes[0], contexts[0])
    for context in contexts:
        for size in sizes:
            for layout in kinds:
                report.case(
                    f"train/{size}/{context}/{layout}/{'compiled' if compiled else 'eager'}",
                    partial(train_case, report, size, context, layout, compiled, top),
                    limit=TUNING_SECONDS,
                )


def tune(report: Report, size: str, context: int) -> None:
    """One layer of Mamba-2, forward and backward: its Triton kernels time their configurations when they are
    first called, in every process that finds none kept. In no case's time."""

    def run() -> dict[str, Any]:
        shape = SHAPES[size]
        model = build(spec_of(shape, "mamba2", layers=1))
        ids = torch.randint(shape.vocab, (max(1, shape.tokens // context), context), device=DEVICE)
        training_step(model, F.cross_entropy, optimiser_of(model), ids)()
        synchronise()
        return {}

    report.rows.pop("tuning", None)
    report.case("tuning", run, limit=TUNING_SECONDS)


def train_case(
    report: Report, size: str, context: int, layout: str, compiled: bool, top: float
) -> dict[str, Any]:
    shape = SHAPES[size]
    tokens = max(shape.tokens, context)
    spec = spec_of(shape, layout)
    ids = torch.randint(shape.vocab, (tokens // context, context), device=DEVICE)
    model = build(spec)
    if compiled:
        torch._dynamo.reset()  # it compiles so many kinds of block, and runs the others as they are
        for block in model.layers:
            block.compile()
    optimiser, own_loss = optimiser_of(model), partial(cross_entropy, ignore=IGNORE, kernels=model.kernels)
    own = training_step(model, own_loss, optimiser, ids)
    plain = training_step(model, F.cross_entropy, optimiser, ids)
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    taken, with_torchs_loss = seconds([own, plain], report.rounds)
    row["own with torch's loss ms"] = milliseconds(with_torchs_loss)
    flops = 3 * model_cost(spec, context, "bfloat16").total.flops * tokens
    row |= rates("own", taken, tokens)
    row["own share of peak"] = round(flops / median(taken) / top, 4)
    steps = {"own": own}
    if CUDA:
        # As the training loop runs it, which compiles nothing: what a compiled model is held against, too.
        unchanged = build(spec) if compiled else model
        passes = RecordedPasses(unchanged, autocast)

        def recorded(ids: Tensor) -> Tensor:
            passes.prepare([ids])
            return passes(ids)

        its_optimiser = optimiser_of(unchanged) if compiled else optimiser
        steps["recorded"] = training_step(recorded, own_loss, its_optimiser, ids, around=nullcontext)
        taken = seconds([steps["recorded"]], report.rounds, warm=3)[0]
        row |= rates("recorded", taken, tokens)
        row["recorded share of peak"] = round(flops / median(taken) / top, 4)
        row["not recorded"] = passes.refused
    for name, rival in gpu_rivals.rivals(shape, layout, DEVICE):
        row |= against(report, steps, name, rival, ids, compiled)
        tidy()
    ratios = {name: value for name, value in row.items() if " / " in name}
    # As the training loop takes its steps: recorded, where that goes.
    taken_so = "recorded" if any(name.startswith("recorded / ") for name in ratios) else "own"
    if ratios:
        row["met"] = max(v for name, v in ratios.items() if name.startswith(taken_so)) <= BARS["train"]
    if CUDA:
        row["GiB at most"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        torch.cuda.reset_peak_memory_stats()
    return row


def against(
    report: Report,
    steps: dict[str, Callable[[], object]],
    name: str,
    rival: Callable[[], gpu_rivals.Built],
    ids: Tensor,
    compiled: bool,
) -> dict[str, Any]:
    """Our steps and another model's, taking turns. One other model at a time is held in memory; one that
    cannot be compiled runs as it is."""
    row: dict[str, Any] = {}
    for compile_it in (True, False) if compiled else (False,):
        label = f"{name} (eager)" if compiled and not compile_it else name
        try:
            with limited(RIVAL_SECONDS):
                other, logits = rival()
                row[f"{label} params"] = sum(p.numel() for p in other.parameters())
                if compile_it:
                    gpu_rivals.compile_blocks(other)
                its_step = training_step(logits, F.cross_entropy, optimiser_of(other), ids)
                its_step()  # alone, so that one that does not run costs no steps of ours
                *mine, its = seconds([*steps.values(), its_step], report.rounds, warm=1)
                row |= rates(label, its, ids.numel())
                return row | {
                    f"{how} / {label}": ratio(own, its) for how, own in zip(steps, mine, strict=True)
                }
        except Exception as error:  # it does not run here, or not beside ours: part of the result
            row[f"{label} error"] = explained(error)
        other = logits = its_step = None  # type: ignore[assignment]
        tidy()
    return row


def rates(name: str, taken: list[float], tokens: int) -> dict[str, Any]:
    return {f"{name} ms": round(1000 * median(taken), 2), f"{name} tokens/s": round(tokens / median(taken))}
