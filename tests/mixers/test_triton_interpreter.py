"""The kernels of the mamba_ssm package, forward and backward, where it and Triton are installed.

    pip install --no-deps triton einops
    MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-deps --no-build-isolation mamba-ssm

On a CPU: Triton interprets them. That shows that we call them as they want to be called and that they compute
what we mean; not how they round in half precision, nor how fast they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("einops")
if find_spec("mamba_ssm") is None:
    pytest.skip("mamba_ssm is not installed", allow_module_level=True)

CASES = Path(__file__).with_name("triton_cases.py")


def test_interpreted_kernels_agree_with_float64() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(CASES)], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == 5
    assert max(errors.values()) <= 1e-5, errors
