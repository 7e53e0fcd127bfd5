"""What holds for every test: one thread a process, and hypothesis without deadlines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Read by torch when it is first imported; tests share two cores, and sums over several threads would not
# repeat to the bit.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "archsearch",
    deadline=None,  # time on a shared machine says nothing about correctness
    print_blob=True,
    # In CI the same commit gives the same verdict; new examples are found, and kept, on developers' machines.
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("archsearch")


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """A run flushes them to zero for its whole process; hypothesis, which draws them, refuses to go on."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
