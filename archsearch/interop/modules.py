"""Modules and their weights, by name, before they have any."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class Unallocated(TorchFunctionMode):
    """Tensors made by `torch.empty` on no device in particular, as large weights are, get no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def first_names(module: nn.Module) -> dict[str, str]:
    """Every name of the state dict -> the first name of the same tensor: shared weights have several."""
    first: dict[int, str] = {}
    tensors = module.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
