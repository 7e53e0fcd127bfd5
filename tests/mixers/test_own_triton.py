"""The package's own Triton kernels, forward and backward, interpreted on a CPU where Triton is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CASES = Path(__file__).with_name("own_triton_cases.py")


def test_interpreted_kernels_agree_with_float64() -> None:
    paths = [str(CASES.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, str(CASES)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 35
    assert max(errors.values()) <= 1e-6, errors
