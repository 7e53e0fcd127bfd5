"""What reads files must not wait for torch or ray."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "archsearch",
        "archsearch.spec",
        "archsearch.spec.schema",
        "archsearch.data",
        "archsearch.training.spec",
        "archsearch.training.errors",
        "archsearch.evaluation.spec",
        "archsearch.experiment",
        "archsearch.search.space",
    ],
)
def test_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'optuna'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
