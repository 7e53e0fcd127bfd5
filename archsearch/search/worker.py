"""The process that trains: a Ray actor that takes one trial after the other."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import ray
from ray import tune

from archsearch.search.away import AwayWork, StopKey
from archsearch.search.guard import SHARE_OF_MEMORY, Guard, Limits, node_memory
from archsearch.search.parallel import ParallelWork
from archsearch.search.place import cpu_count
from archsearch.search.work import Stop, TrialWork
from archsearch.study.schema import LOCK


class TrialWorker(tune.Trainable):
    """Tune's view of a `TrialWork`.

    config: run, folder, stop (paths), driver (the driver's process id), threads, device, cwd, goal, seeds
    (as `TrialWork` has them), concurrency (trials at once), memory and seconds (what this one may use; None:
    its share, and no limit). On a cluster also home (a URI) and spec, as `AwayWork` has them, and verdicts (a
    path, if any); stop is then the key of a `StopKey`, and the other paths are the driver's alone.

    What a trial came to is reported as JSON under `outcome`, an exception included: it is the trial that
    fails, not its worker, which goes on with the next one.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self.sign: Stop = Path(config["stop"])
        self.away = "home" in config
        if self.away:
            self.sign = StopKey(config["stop"])
            self.sign.follow()
        else:
            os.chdir(config["cwd"])
        self.guard = Guard(None if self.away else Path(config["run"]) / LOCK, config["driver"])
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
        if outcome is None:
            return {}
        self.guard.rest()
        if self.away:
            outcome["node"] = ray.get_runtime_context().get_node_id()
        return {"outcome": json.dumps(outcome), "done": True}

    def cleanup(self) -> None:
        self.work.close()

    def _take(self, config: dict[str, Any]) -> None:
        folder = Path(config.get("verdicts") or config["folder"])
        what = self.sign, config["device"], config["goal"], config["seeds"]
        self.work: TrialWork | AwayWork | ParallelWork
        if config["workers"] > 1:
            self.work = ParallelWork(config)
        elif self.away:
            self.work = AwayWork(config["home"], config["spec"], *what)
            folder = folder if config["verdicts"] else self.work.home.folder
        else:
            self.work = TrialWork(folder, *what)
        self.guard.watch(folder, Limits(_memory_limit(config), config["seconds"]))


def _is_sound() -> bool:
    """Whether CUDA still works here: after a fault in a kernel, every later call of its process fails."""
    import torch

    try:
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        return not torch.cuda.is_available()  # without CUDA a trial fails with a better message
    return True


def _memory_limit(config: dict[str, Any]) -> int | None:
    """Bytes that this process may hold: what the trial was given, or its share of this node."""
    if config["memory"] is not None:
        return int(config["memory"])
    at_once = min(config["concurrency"], max(1, cpu_count() // config["threads"]))
    memory = node_memory()
    return None if memory is None else int(SHARE_OF_MEMORY * memory / at_once)
