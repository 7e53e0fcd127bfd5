"""Moves weights by their rules: every tensor of the source is used, every tensor of ours is filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from archsearch.compiler.model import LanguageModel
from archsearch.interop.rules import Rule, Rules
from archsearch.mixers.kernels import Mode, choose_kernels
from archsearch.spec.errors import SpecError
from archsearch.spec.model import ModelSpec


class _Unallocated(TorchFunctionMode):
    """Tensors made by `torch.empty`, as large weights are, get a shape and no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build(spec: ModelSpec, weights: Mapping[str, Tensor], kernels: Mode = "auto") -> LanguageModel:
    """The spec's model on these very tensors (their device, their dtypes), by their names in its state dict.

    Raises `SpecError` where one is missing, too many, or of another shape.
    """
    device = str(next(iter(weights.values())).device) if weights else "cpu"
    with _Unallocated():
        model = LanguageModel(spec, choose_kernels(kernels, device))
    ours = shapes(model)
    for name in ours.keys() - weights.keys():
        raise SpecError(f"weights: {name} is missing")
    for name, tensor in weights.items():
        if name not in ours:
            raise SpecError(f"weights: {name} is no weight of {spec.name!r}")
        if tensor.shape != ours[name]:
            raise SpecError(f"weights: {name}: expected {_size(ours[name])}, found {_size(tensor.shape)}")
    model.load_state_dict(dict(weights), assign=True)
    return model


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def gather(rules: Rules, source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors, copies of the source's, which leave `source` one by one as they are used.

    Raises `SpecError` for a tensor that a rule names and the source lacks, and for one that no rule names,
    unless it is the same memory as one that was used: a tied weight.
    """
    used: set[int] = set()
    found: dict[str, Tensor] = {}
    for rule in rules:
        theirs = []
        for name in rule.theirs:
            if name not in source:
                raise SpecError(f"weights: {name} is missing (it goes to {rule.ours})")
            theirs.append(source.pop(name))
        used |= {tensor.data_ptr() for tensor in theirs}
        found[rule.ours] = _joined(rule, theirs)
    for name, tensor in source.items():
        if tensor.data_ptr() not in used:
            raise SpecError(f"weights: {name} {_size(tensor.shape)} has no place here")
    return found


def _joined(rule: Rule, theirs: list[Tensor]) -> Tensor:
    try:
        joined = rule.join.together(theirs).contiguous()
    except (RuntimeError, IndexError) as error:
        names = ", ".join(f"{n} {_size(t.shape)}" for n, t in zip(rule.theirs, theirs, strict=True))
        raise SpecError(f"weights: {rule.ours} cannot be made of {names}: {error}") from None
    return joined.clone() if joined.data_ptr() == theirs[0].data_ptr() else joined


def _size(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a number"
