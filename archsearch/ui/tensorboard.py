"""Trials as TensorBoard event files, written with tensorboardX: `tensorboard --logdir RUN/tensorboard`.

A folder a trial: `loss`, `loss/SOURCE` and `lr` against optimiser steps, the scores and objectives at the
last step, and the trial's parameters, layout and state as text.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from archsearch.study import Study, Trial

FOLDER = "tensorboard"

Scalar = tuple[str, float, int, float | None]
"""Tag, value, step, time (seconds since the epoch)."""


def write_tensorboard(study: Study, folder: Path) -> int:
    """Write every trial's events into `folder`, in place of what an earlier call wrote; how many trials.

    The study's curves are to be read before. Raises ImportError where tensorboardX is not installed.
    """
    from tensorboardX import SummaryWriter

    for trial in study.trials.values():
        own = folder / trial.id
        shutil.rmtree(own, ignore_errors=True)
        with SummaryWriter(str(own)) as writer:
            for tag, value, step, moment in scalars(trial):
                writer.add_scalar(tag, value, step, walltime=moment)
            about = {"state": trial.state, "params": trial.params, "layout": trial.layout}
            writer.add_text("trial", f"```json\n{json.dumps(about, indent=1)}\n```", walltime=trial.started)
    return len(study.trials)


def scalars(trial: Trial) -> Iterator[Scalar]:
    """What a trial's curve and scores amount to. Numbers that are not finite are left out."""
    last = 0
    for point in trial.curve:
        last = point["step"]
        named = {"loss": point.get("loss"), "lr": point.get("lr")}
        named |= {f"loss/{source}": loss for source, loss in (point.get("losses") or {}).items()}
        yield from _finite(named, last, point.get("time"))
    scores = {f"score/{name}": value for name, value in trial.metrics.items()}
    scores |= {f"objective/{name}": value for name, value in trial.values.items()}
    yield from _finite(scores, last, trial.ended)


def _finite(named: dict[str, float | None], step: int, moment: float | None) -> Iterator[Scalar]:
    for tag, value in named.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield tag, float(value), step, moment
