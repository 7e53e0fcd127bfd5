"""A trial that several processes train together, as Ray Train's workers."""

from __future__ import annotations

import json
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

from archsearch.search import homes
from archsearch.search.away import AwayWork, StopKey
from archsearch.search.work import Outcome, Stop, one_line
from archsearch.study.schema import SPEC

RESULT = "outcome.json"
"""In the trial's folder until it is reported: what its first worker says of it."""

_WAIT_SECONDS = 2.0


class ParallelWork:
    """A trial's work, done by a group of workers. config: as `TrialWorker` has it; with `workers`, and what
    each of them `asks` of a node, by Ray's names."""

    def __init__(self, config: dict[str, Any]):
        self.told = {
            "home": config.get("home", config["folder"]),
            "spec": config.get("spec") or (Path(config["folder"]) / SPEC).read_text(),
            **{key: config[key] for key in ("stop", "threads", "device", "goal", "seeds")},
            "cwd": None if "home" in config else config["cwd"],
        }
        self._result = homes.joined(self.told["home"], RESULT)
        self._problem: Exception | None = None
        homes.delete(self._result)
        self._thread = threading.Thread(
            target=self._fit, args=(config["workers"], config["asks"]), daemon=True
        )
        self._thread.start()

    def advance(self) -> Outcome | None:
        """Wait for a while; what became of the trial, once that is known. Raises where the group was lost."""
        self._thread.join(_WAIT_SECONDS)
        if self._thread.is_alive():
            return None
        if homes.exists(self._result):
            outcome: Outcome = json.loads(homes.read(self._result))
            homes.delete(self._result)
            return outcome
        raise RuntimeError(one_line(str(self._problem or "the workers ended without a result")))

    def close(self) -> None:
        """The workers end with this process, if they have not."""

    def _fit(self, workers: int, asks: dict[str, float]) -> None:
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        cuda = self.told["device"] == "cuda"
        with tempfile.TemporaryDirectory(prefix="archsearch-train-") as folder:
            trainer = TorchTrainer(
                train,
                train_loop_config=self.told,
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda, resources_per_worker=asks),
                run_config=RunConfig(name=uuid.uuid4().hex, storage_path=folder),
                torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            )
            try:
                trainer.fit()
            except Exception as error:
                self._problem = error


def train(told: dict[str, Any]) -> None:
    """One worker's part of a trial. An exception of one ends them all."""
    import os

    import torch
    import torch.distributed as dist
    from ray.train.torch import get_device

    from archsearch.training.parallel import Share

    torch.set_num_threads(told["threads"])
    stop: Stop = Path(told["stop"])
    if told["cwd"] is None:
        stop = StopKey(told["stop"])
        stop.follow()
    else:
        os.chdir(told["cwd"])
    share = Share(dist.get_rank(), dist.get_world_size())
    device = str(get_device()) if told["device"] == "cuda" else "cpu"
    work = AwayWork(told["home"], told["spec"], stop, device, told["goal"], told["seeds"], share)
    dist.barrier()  # all have fetched the same before the first one stores anything
    try:
        while (outcome := work.advance()) is None:
            pass
    finally:
        work.close()
    failed = outcome["state"] == "failed"
    if share.rank == 0 or failed:
        homes.write(homes.joined(told["home"], RESULT), json.dumps(outcome).encode())
    if failed and not outcome["cause"]["kind"].startswith("non-finite"):  # that, all of them see
        raise RuntimeError(outcome["cause"]["message"])
