"""Learning rate by step."""

from __future__ import annotations

import math

from archsearch.training.spec import TrainingSpec


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """The rate of optimiser step `step`, counted from 0.

    Linear warm-up over the first `warmup` share of the steps, then the spec's schedule. It depends on steps
    only, never on time, so that an interrupted run continues as it would have gone on.
    """
    warmup = round(spec.warmup * spec.steps)
    if step < warmup:
        return spec.lr * (step + 1) / (warmup + 1)
    if spec.schedule == "constant":
        return spec.lr
    if spec.schedule == "cosine":
        done = (step - warmup) / max(1, spec.steps - warmup)
        return spec.lr * (spec.final_lr + (1 - spec.final_lr) * (1 + math.cos(math.pi * done)) / 2)
    decaying = max(1, round(spec.decay * spec.steps))
    left = min(1.0, (spec.steps - step) / decaying)
    return spec.lr * (spec.final_lr + (1 - spec.final_lr) * left)
