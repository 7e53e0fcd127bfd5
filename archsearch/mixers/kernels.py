"""Which implementation computes an operation, chosen by device and by what is really usable.

A CUDA package that is installed may still be broken (the normal state on a machine without a GPU), so each
function is probed by importing it. Native torch is always there and computes the same function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Mode = Literal["auto", "native", "require"]

FUNCTIONS: dict[str, tuple[str, str]] = {
    "attention": ("flash_attn", "flash_attn_func"),
    "ssd": ("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined"),
    "selective_scan": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn"),
    "short_conv": ("causal_conv1d", "causal_conv1d_fn"),
}
"""Operation -> the module and function of its CUDA kernel."""

HALF = ("torch.float16", "torch.bfloat16")
DTYPES: dict[str, tuple[str, ...]] = {
    "attention": HALF,
    "ssd": (*HALF, "torch.float32"),
    "selective_scan": (*HALF, "torch.float32"),
    "short_conv": (*HALF, "torch.float32"),
}
"""Operation -> dtypes that its CUDA kernel takes."""


@dataclass(frozen=True)
class Choice:
    """What computes an operation, and why. `function` is None for native torch."""

    operation: str
    name: str
    why: str
    function: Callable[..., Any] | None = None


class KernelError(RuntimeError):
    """`kernels: require` where a kernel cannot be used."""


@dataclass(frozen=True)
class Kernels:
    """The kernels a model was compiled with; empty means native torch throughout."""

    choices: tuple[Choice, ...] = ()

    def get(self, operation: str, tensor: Any) -> Callable[..., Any] | None:
        """The CUDA kernel to use for `tensor`, or None for the native path."""
        if not tensor.is_cuda or str(tensor.dtype) not in DTYPES[operation]:
            return None
        return next((c.function for c in self.choices if c.operation == operation), None)


def choose_kernels(mode: Mode, device: str) -> Kernels:
    """Probe every operation's kernel. Raises `KernelError` where `require` cannot be met."""
    return Kernels(tuple(choose(operation, mode, device) for operation in FUNCTIONS))


def choose(operation: str, mode: Mode, device: str) -> Choice:
    module, name = FUNCTIONS[operation]
    if mode == "native":
        return Choice(operation, "torch", "asked for native")
    if not device.startswith("cuda"):
        why = f"the model is on {device}"
    else:
        function, why = probe(module, name)
        if function is not None:
            return Choice(operation, f"{module}.{name}", "usable, and the model is on CUDA", function)
    if mode == "require":
        raise KernelError(f"{module}.{name} is required for {operation}, but {why}")
    return Choice(operation, "torch", why)


@cache
def probe(module: str, name: str) -> tuple[Callable[..., Any] | None, str]:
    """The function, or None and why it cannot be imported."""
    try:
        return getattr(importlib.import_module(module), name), "usable"
    except ModuleNotFoundError as error:
        return None, f"{error.name or module} is not installed"
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return None, f"{module} is installed but broken: {' '.join(str(error).split())[:120]}"
