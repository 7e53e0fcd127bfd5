"""Where a sweep's trials run, and how many at once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from archsearch.search.away import Away
from archsearch.search.ray_session import ray_session
from archsearch.search.settings import Resources
from archsearch.search.space import SearchSpace


@dataclass(frozen=True)
class Place:
    """Where trials run. concurrency: most at once; session: enters a running Ray, for the run in a folder,
    and yields a folder for passing files; away: where workers may be on other machines."""

    concurrency: int
    session: Callable[[Path], AbstractContextManager[Path]]
    away: Away | None = None


def this_machine(space: SearchSpace) -> Place:
    """A Ray of our own on this machine. Raises SpecError where a trial asks for what it does not have."""
    resources = space.settings.resources
    gpus = gpu_count() if resources.gpu else 0
    if resources.gpu and _seats(resources, gpus) < resources.processes:
        asked = resources.gpu * (resources.workers or 1)
        raise space.refuse(("resources", "gpu"), f"{asked:g} GPUs a trial; this machine has {gpus or 'none'}")
    for name in resources.custom:
        raise space.refuse(
            ("resources", "custom", name), "this machine alone has no custom resources; --address has"
        )
    concurrency = _fitting(resources, gpus)
    cpus, threads = concurrency * resources.processes * resources.cpu, resources.cpu
    return Place(concurrency, lambda run: ray_session(run, cpus, threads, gpus))


def _fitting(resources: Resources, gpus: int) -> int:
    """Trials at once: as many as are asked for, else fit the cores; never more than fit the GPUs."""
    found = resources.concurrent or max(1, cpu_count() // (resources.cpu * resources.processes))
    return min(found, _seats(resources, gpus) // resources.processes) if resources.gpu else found


def _seats(resources: Resources, gpus: int) -> int:
    """Processes that the GPUs have room for, each share of a GPU being one GPU's."""
    return gpus * int(1 / resources.bundle["GPU"] + 1e-9)


def cpu_count() -> int:
    """Cores this process may use: its affinity, and the share its control group is given (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return max(1, cores)


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use. Asks the driver's own tool: torch would start CUDA here."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name.strip() for name in visible.split(",")]
        return len([name for name in named if name not in ("", "-1", "NoDevFiles")])
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60)
        if listed.returncode == 0:
            return len([line for line in listed.stdout.splitlines() if line.startswith("GPU ")])
    except (OSError, subprocess.SubprocessError):
        pass
    return len(list(Path("/dev").glob("nvidia[0-9]*")))
