"""Moves weights by their rules: every tensor of the source is used, every tensor of ours is filled."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from archsearch.compiler.model import LanguageModel
from archsearch.interop.modules import Unallocated, first_names
from archsearch.interop.rules import Rule, Rules
from archsearch.mixers.kernels import Mode, choose_kernels
from archsearch.spec.errors import SpecError
from archsearch.spec.model import ModelSpec


def unfilled(spec: ModelSpec, device: str = "cpu", kernels: Mode = "auto") -> LanguageModel:
    """The spec's model before its weights are there, made without the memory and the time of drawing some."""
    with Unallocated():
        return LanguageModel(spec, choose_kernels(kernels, device))


def fill(model: LanguageModel, weights: Mapping[str, Tensor]) -> LanguageModel:
    """The model with these very tensors (their device, their dtypes), by their names in its state dict; a
    shared one by its first.

    Raises `SpecError` where one is missing, too many, or of another shape.
    """
    ours, first = model.state_dict(keep_vars=True), first_names(model)
    for name in set(first.values()) - weights.keys():
        raise SpecError(f"weights: {name} is missing")
    for name, tensor in weights.items():
        if first.get(name) != name:
            raise SpecError(f"weights: {name} is no weight of {model.spec.name!r}")
        if tensor.shape != ours[name].shape:
            raise SpecError(f"weights: {name}: expected {_size(ours[name])}, found {_size(tensor)}")
    # As parameters, so that what was one parameter under several names is one again.
    held = {
        name: nn.Parameter(tensor) if isinstance(ours[name], nn.Parameter) else tensor
        for name, tensor in weights.items()
    }
    model.load_state_dict({name: held[of] for name, of in first.items()}, assign=True)
    return model


def gather(rules: Rules, source: dict[str, Tensor], model: LanguageModel) -> dict[str, Tensor]:
    """The model's tensors, copies of the source's, which leave `source` one by one as they are used.

    Raises `SpecError` for a tensor that a rule names and the source lacks, for one that does not fit, and
    for one of either side that no rule names; a tied weight, the memory of another, needs none.
    """
    tensors = model.state_dict()
    ours = {name: tensors[name] for name in first_names(model).values()}
    used: set[int] = set()
    found: dict[str, Tensor] = {}
    for rule in rules:
        if rule.ours is None:
            for name in rule.theirs:
                source.pop(name, None)
            continue
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
