"""The process that trains: a Ray actor that takes one trial after the other."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from ray import tune

from archsearch.search.work import TrialWork
from archsearch.study.log import is_live
from archsearch.study.schema import LOCK

_LOOK_SECONDS = 0.5


class TrialWorker(tune.Trainable):
    """Tune's view of a `TrialWork`.

    config: run, folder, stop (paths), driver (the driver's process id), threads, device, cwd, goal, seeds
    (as `TrialWork` has them). What a trial came to is reported as JSON under `outcome`, an exception
    included: it is the trial that fails, not its worker, which goes on with the next one.
    """

    def setup(self, config: dict[str, Any]) -> None:
        os.chdir(config["cwd"])
        watch = threading.Thread(target=_die_with, args=(Path(config["run"]), config["driver"]), daemon=True)
        watch.start()
        import torch

        torch.set_num_threads(config["threads"])
        with contextlib.suppress(RuntimeError):  # the pool is running already
            torch.set_num_interop_threads(1)
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.work.close()
        if new_config["device"].startswith("cuda") and not _is_sound():
            os._exit(1)
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        outcome = self.work.advance()
        return {} if outcome is None else {"outcome": json.dumps(outcome), "done": True}

    def cleanup(self) -> None:
        self.work.close()

    def _take(self, config: dict[str, Any]) -> None:
        self.work = TrialWork(
            Path(config["folder"]),
            Path(config["stop"]),
            config["device"],
            goal=config["goal"],
            seeds=config["seeds"],
        )


def _is_sound() -> bool:
    """Whether CUDA still works here: after a fault in a kernel, every later call of its process fails."""
    import torch

    try:
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        return not torch.cuda.is_available()  # without CUDA a trial fails with a better message
    return True


def _die_with(run: Path, driver: int) -> None:
    """End this process when the driver lets go of the run's lock: Ray may take seconds to notice a kill."""
    while is_live(run) and _holder(run) == driver:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)


def _holder(run: Path) -> int | None:
    try:
        return int((run / LOCK).read_text())
    except (OSError, ValueError):
        return None
