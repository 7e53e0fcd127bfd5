"""The package's own Triton kernels compiled for a GPU (compute capability 9.0), without one.

Run by test_own_triton in a process of its own. Each operation's trial launches its kernels; in the place of a
launch, what would be compiled for it is noted, and then compiled. Prints a JSON object: kernel and dtype ->
[bytes of shared memory, loads of 16 bytes].
"""

from __future__ import annotations

import importlib
import json
import re
import types
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from archsearch.mixers.kernels import trial
from archsearch.mixers.kernels.limits import FLASH_WIDTH
from archsearch.mixers.kernels.table import OPERATIONS

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
}

Launch = tuple[ASTSource, dict[str, Any]]


def source_of(kernel: JITFunction[Any], args: tuple[Any, ...]) -> ASTSource:
    """What is compiled for a launch: types, constants, and which pointers and numbers are multiples of 16."""
    signature, constants, aligned = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            aligned[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, aligned)


def launches(operation: str, inputs: trial.Trial, dtype: torch.dtype) -> dict[str, Launch]:
    """By name, each kernel of ours that an operation launches for a trial's inputs. It computes nothing."""
    found: dict[str, Launch] = {}

    def note(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found[self.__name__] = source_of(self, args), options

    JITFunction.run = note  # type: ignore[method-assign]
    for kernel in OPERATIONS[operation]:
        if kernel.module.startswith("archsearch.mixers.kernels.triton_"):
            call = partial(kernel.call, getattr(importlib.import_module(kernel.module), kernel.name))
            trial.largest_error(inputs, call, "cpu", dtype)
    return found


def main() -> None:
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(  # type: ignore[assignment]
        multi_processor_count=132
    )
    widest = dict.fromkeys("qkv", (1, 2, 40, FLASH_WIDTH))
    cases = [(operation, operation, trial.TRIALS[operation]) for operation in OPERATIONS]
    cases += [("widest", "cached_attention", replace(trial.TRIALS["cached_attention"], shapes=widest))]
    results = {}
    for label, operation, inputs in cases:
        for dtype in (torch.bfloat16, torch.float32):
            for name, (source, options) in launches(operation, inputs, dtype).items():
                made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
                wide = re.findall(r"ld\.global\.v4|ld\.global\.v2\.b64|cp\.async\.cg", made.asm["ptx"])
                results[f"{label}: {name}, {dtype}"] = made.metadata.shared, len(wide)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
