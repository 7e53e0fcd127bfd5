"""The package's own Triton kernels, forward and backward, where Triton is installed: interpreted on a CPU,
and compiled for a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archsearch.mixers.kernels.table import OPERATIONS

pytest.importorskip("triton")

HERE = Path(__file__).parent

SHARED_MEMORY = 227 * 1024
"""Of a program on a GPU of compute capability 9.0."""


def results(cases: str, **variables: str) -> dict[str, Any]:
    """What a script beside this one prints, run in a process of its own."""
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}
    command = [sys.executable, str(HERE / cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    made = results("compiled_triton_cases.py", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    ours = {kernel.module for some in OPERATIONS.values() for kernel in some if ".triton_" in kernel.module}
    assert len(made) >= 2 * len(ours)
    assert max(shared for shared, _ in made.values()) <= SHARED_MEMORY, made
    # A cache is read 16 bytes at a time though its address is a number: a kernel is as fast as it reads.
    reading = [wide for name, (_, wide) in made.items() if "_attend_part" in name]
    assert len(reading) == 4
    assert min(reading) >= 8, made


def test_interpreted_kernels_agree_with_float64() -> None:
    errors = results("own_triton_cases.py", TRITON_INTERPRET="1")
    assert errors
    assert max(errors.values()) <= 1e-6, errors
