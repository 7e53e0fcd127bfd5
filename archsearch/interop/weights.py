"""Moves weights by their rules: every tensor of the source is used, every tensor of ours is filled."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from archsearch.compiler.model import LanguageModel
from archsearch.interop.rules import Rule, Rules
from archsearch.interop.unallocated import Unallocated
from archsearch.mixers.kernels import Mode, choose_kernels
from archsearch.spec.errors import SpecError
from archsearch.spec.model import ModelSpec


def unfilled(spec: ModelSpec, device: str = "cpu", kernels: Mode = "auto") -> LanguageModel:
    """The spec's model before its weights are there, made without the memory and the time of drawing some."""
    with Unallocated():
        return LanguageModel(spec, choose_kernels(kernels, device))


def fill(model: LanguageModel, weights: Mapping[str, Tensor]) -> LanguageModel:
    """The model with these very tensors (their device, their dtypes), by their names in its state dict.

    Raises `SpecError` where one is missing, too many, or of another shape.
    """
    ours = model.state_dict()
    for name in ours.keys() - weights.keys():
        raise SpecError(f"weights: {name} is missing")
    for name, tensor in weights.items():
        if name not in ours:
            raise SpecError(f"weights: {name} is no weight of {model.spec.name!r}")
        if tensor.shape != ours[name].shape:
            raise SpecError(f"weights: {name}: expected {_size(ours[name])}, found {_size(tensor)}")
    model.load_state_dict(dict(weights), assign=True)
    return model


def gather(rules: Rules, source: dict[str, Tensor], model: LanguageModel) -> dict[str, Tensor]:
    """The model's tensors, copies of the source's, which leave `source` one by one as they are used.

    Raises `SpecError` for a tensor that a rule names and the source lacks, for one that does not fit, and
    for one of either side that no rule names; a tied weight, the memory of another, needs none.
    """
    ours = model.state_dict()
    used: set[int] = set()
    found: dict[str, Tensor] = {}
    for rule in rules:
        for name in rule.theirs:
            if name not in source:
                raise SpecError(f"weights: {name} is missing (it goes to {rule.ours})")
        theirs = [source.pop(name) for name in rule.theirs]
        used |= {tensor.data_ptr() for tensor in theirs}
        found[rule.ours] = _joined(rule, theirs, ours.pop(rule.ours))
    for name, tensor in source.items():
        if tensor.data_ptr() not in used:
            raise SpecError(f"weights: {name} ({_size(tensor)}) has no place here")
    for name in ours:
        raise SpecError(f"weights: nothing goes to {name}")
    return found


def _joined(rule: Rule, theirs: list[Tensor], ours: Tensor) -> Tensor:
    try:
        joined = rule.join.together(theirs)
        if joined.shape != ours.shape:
            raise ValueError
    except (RuntimeError, IndexError, ValueError):
        names = ", ".join(f"{name} ({_size(t)})" for name, t in zip(rule.theirs, theirs, strict=True))
        raise SpecError(f"weights: {rule.ours} ({_size(ours)}) cannot be made of {names}") from None
    joined = joined.contiguous()
    return joined.clone() if joined.data_ptr() == theirs[0].data_ptr() else joined


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
