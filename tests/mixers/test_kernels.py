"""Which implementation is chosen, and why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from archsearch.mixers.kernels import DTYPES, FUNCTIONS, Choice, KernelError, Kernels, choose, probe


def test_a_cpu_model_is_native_and_says_why() -> None:
    for operation in FUNCTIONS:
        choice = choose(operation, "auto", "cpu")
        assert (choice.name, choice.why, choice.function) == ("torch", "the model is on cpu", None)
        assert choose(operation, "native", "cuda").why == "asked for native"


def test_require_on_a_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(KernelError, match=r"flash_attn.flash_attn_func is required .* the model is on cpu"):
        choose("attention", "require", "cpu")


def test_a_broken_package_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('libcudart.so.12:\\n cannot open')\n")
    (tmp_path / "partial_kernels.py").write_text("other = 1\n")
    (tmp_path / "sound_kernels.py").write_text("def scan(): return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert probe("no_such_kernels", "scan") == (None, "no_such_kernels is not installed")
    function, why = probe("broken_kernels", "scan")
    assert function is None
    assert why == "broken_kernels is installed but broken: libcudart.so.12: cannot open"
    assert "has no attribute 'scan'" in probe("partial_kernels", "scan")[1]
    function, why = probe("sound_kernels", "scan")
    assert function is not None
    assert (function(), why) == (3, "usable")
    for name in ("partial_kernels", "sound_kernels"):
        sys.modules.pop(name, None)


def test_tensors_off_cuda_and_dtypes_without_a_kernel_take_the_native_path() -> None:
    kernels = Kernels(tuple(Choice(name, "kernel", "", lambda: None) for name in FUNCTIONS))
    assert set(DTYPES) == set(FUNCTIONS)
    assert all(kernels.get(name, torch.zeros(1)) is None for name in FUNCTIONS)
