"""The choice of a kernel for an operation, and the reason."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from archsearch.mixers.kernels.table import FUSED_IN_TORCH, OPERATIONS, Kernel
from archsearch.mixers.kernels.trial import complaint

Mode = Literal["auto", "native", "require"]


class KernelError(RuntimeError):
    """`kernels: require` where a kernel cannot be used."""


@dataclass(frozen=True)
class Choice:
    """What computes an operation, and why. `function` is None for native torch; else it takes and returns
    what the operation's call in `calls` does, without the kernel itself."""

    operation: str
    name: str
    why: str
    function: Callable[..., Any] | None = None
    dtypes: tuple[str, ...] = ()
    device: str = "cuda"

    def of(self, tensor: Tensor) -> Callable[..., Any] | None:
        """The function to use for `tensor`, or None for the native path."""
        if tensor.device.type != self.device or str(tensor.dtype) not in self.dtypes:
            return None
        return self.function


@dataclass(frozen=True)
class Kernels:
    """Which kernels a model may use. Each layer asks for those that it would use, when it is built.

    chosen: what was asked for, and the answers; in a compiled model a look-up is all that is traced.
    """

    mode: Mode = "native"
    device: str = "cpu"
    chosen: dict[tuple[Any, ...], Choice] = field(default_factory=dict, compare=False, repr=False)

    def choose(
        self,
        operation: str,
        problem: str | None = None,
        forms: Collection[str] = frozenset(),
        needed: bool = True,
    ) -> Choice:
        """problem: why this layer cannot use the operation's kernels, whatever is installed. forms: what it
        asks of them beyond the plain operation. needed: false where kernels of other operations do as well.
        Raises `KernelError` where `require` cannot be met.
        """
        key = operation, problem, *sorted(forms)
        if key in self.chosen:
            return self.chosen[key]
        if self.mode == "native":
            choice = Choice(operation, "torch", "asked for native")
        else:
            required = needed and self.mode == "require"
            choice = _choose(operation, self.device, problem, frozenset(forms), required)
        if needed and self.mode == "require" and choice.name == "torch":
            wanted = " or ".join(str(kernel) for kernel in OPERATIONS[operation] if forms or kernel.plain)
            raise KernelError(f"{wanted} is required for {operation}, but {choice.why}")
        self.chosen[key] = choice
        return choice


def choose_kernels(mode: Mode, device: str) -> Kernels:
    """The kernels of a model on `device`. Nothing is imported before a layer asks."""
    return Kernels(mode, device)


@cache
def _choose(
    operation: str, device: str, problem: str | None, forms: frozenset[str], required: bool = False
) -> Choice:
    if not device.startswith("cuda"):
        return Choice(operation, "torch", f"the model is on {device}")
    reasons = [] if problem is None else [problem]
    for kernel in OPERATIONS[operation] if problem is None else ():
        if lacking := forms - kernel.forms:
            reasons.append(f"{kernel} has no {' and no '.join(sorted(lacking))}")
            continue
        if not forms and not kernel.plain:
            continue
        if not forms and not required and _is_outdone(kernel, device):
            reasons.append(f"torch's own is faster than {kernel} on this GPU")
            continue
        function, why = probe(kernel, operation, device)
        if function is not None:
            return Choice(operation, str(kernel), why, function, kernel.dtypes)
        reasons.append(why)
    why = "; ".join(dict.fromkeys(reasons))
    if operation in FUSED_IN_TORCH and not forms:
        return Choice(operation, FUSED_IN_TORCH[operation], why)
    return Choice(operation, "torch", why)


def _is_outdone(kernel: Kernel, device: str) -> bool:
    if kernel.outdone is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= kernel.outdone


@cache
def probe(kernel: Kernel, operation: str, device: str) -> tuple[Callable[..., Any] | None, str]:
    """The kernel behind its call, or None and why it cannot be used: it is imported, and tried once."""
    function, why = find(kernel.module, kernel.name)
    if function is None:
        return None, why
    if not torch.cuda.is_available():
        return None, f"{kernel.module} is installed, but there is no CUDA device to try it on"
    call = torch.compiler.disable(partial(kernel.call, function), reason=f"{kernel} is no graph of torch's")
    wrong = complaint(operation, call, device)
    if wrong is not None:
        return None, f"{kernel} {wrong}"
    return call, f"usable, for {', '.join(name.removeprefix('torch.') for name in kernel.dtypes)}"


def find(module: str, name: str) -> tuple[Callable[..., Any] | None, str]:
    """The function, or None and why it cannot be imported."""
    try:
        return getattr(importlib.import_module(module), name), "found"
    except ModuleNotFoundError as error:
        return None, f"{error.name or module} is not installed"
    except Exception as error:  # a package built for another torch, driver or GPU fails in many ways
        return None, f"{module} is installed but broken: {short(error)}"


def short(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:120]
