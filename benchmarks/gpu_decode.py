"""Tokens one at a time after a prompt, against other packages' models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import gpu_rivals
import torch
from gpu_models import SHAPES, build, spec_of
from gpu_report import (
    BF16,
    DEVICE,
    TUNING_SECONDS,
    Report,
    explained,
    limited,
    milliseconds,
    ratio,
    seconds,
    tidy,
)

from archsearch.compiler.steps import kernel_by_kernel, told
from archsearch.mixers.base import tensors_in
from archsearch.spec import model_cost

RIVAL_SECONDS = 60.0
"""The longest that one other model may take to be ready."""


def decode(report: Report, sizes: list[str], contexts: list[int], kinds: list[str]) -> None:
    for context in contexts:
        for size in sizes:
            for layout in kinds:
                for batch in (1, 32):
                    report.case(
                        f"decode/{size}/{context}/{layout}/batch {batch}",
                        partial(decode_case, report, size, context, layout, batch),
                        limit=TUNING_SECONDS,
                    )


@torch.inference_mode()
def decode_case(report: Report, size: str, context: int, layout: str, batch: int) -> dict[str, Any]:
    """bf16 weights; the prompt is prefilled, then 32 tokens come one at a time, the likeliest each time: as
    generation runs, with old states kept, kernel by kernel, and by the others. Their caches grow from reading
    to reading."""
    shape, tokens = SHAPES[size], 4 if report.smoke else 32
    spec = spec_of(shape, layout)
    model = build(spec).to(BF16).eval()
    ids = torch.randint(shape.vocab, (1, context), device=DEVICE).expand(batch, -1).contiguous()
    _, state = model.prefill(ids)

    def own(donate: bool = True) -> None:
        current, after = ids[:, -1], state
        for i in range(tokens):
            logits, after = model.step(current, after, donate=donate and i > 0)
            current = logits.argmax(-1)

    def plain() -> None:
        with kernel_by_kernel():
            own()

    steps: dict[str, Callable[[], object]] = {
        "own": own,
        "own, old states kept": partial(own, donate=False),
        "own kernel by kernel": plain,
    }
    row: dict[str, Any] = {}
    for name, make in gpu_rivals.decoders(shape, layout, DEVICE):
        try:
            with limited(RIVAL_SECONDS):
                other = make(ids, tokens)
                other()
            steps[name] = other
        except Exception as error:  # it does not run here: part of the result
            row[f"{name} error"] = explained(error)
        tidy()
    prefill = seconds([lambda: model.prefill(ids)], report.rounds)[0]
    taken = dict(zip(steps, seconds(list(steps.values()), report.rounds), strict=True))
    row |= {f"{name} ms a token": round(milliseconds(t) / tokens, 3) for name, t in taken.items()}
    row |= {f"own / {name}": ratio(taken["own"], t) for name, t in taken.items() if name != "own"}
    held = sum(t.numel() * t.element_size() for t in tensors_in(state.layers))
    return {
        "tokens/s": round(batch * tokens / median(taken["own"])),
        **row,
        "recorded": told(model),
        "prefill ms": milliseconds(prefill),
        "cache bytes a sequence": held // batch,
        "by the cost model": model_cost(spec, context, "bfloat16").total.state_bytes,
    }
