"""What may stand in a `layers` list: a layer, a parallel block, a repeat, a shared layer, a pattern."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator

from archsearch.spec.errors import nearest, refuse, shown, under, validate
from archsearch.spec.layers import Layer, Size, Spec
from archsearch.spec.merges import Mean, Merge, parse_merge
from archsearch.spec.pattern import parse_pattern


def layer_kinds() -> dict[str, type[Layer]]:
    """Every layer kind that is defined, parallel included, by its word in YAML."""
    found: dict[str, type[Layer]] = {}
    waiting = list(Layer.__subclasses__())
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if cls.kind:
            found[cls.kind] = cls
    return dict(sorted(found.items()))


def parse_entry(value: Any) -> Entry:
    """One entry of `layers`. Raises `ValidationError` with paths relative to the entry."""
    if isinstance(value, Layer | Repeat | Share | Pattern):
        return value
    kinds = layer_kinds()
    if isinstance(value, str):
        if value not in kinds:
            refuse((), f"unknown layer {value!r}{nearest(value, kinds)}", value)
        return validate(kinds[value], {}, (value,))
    if not isinstance(value, dict):
        refuse((), f"expected a layer (a word or `kind: {{fields}}`), found {shown(value)}", value)
    if "repeat" in value:
        return validate(Repeat, value)
    if "share" in value:
        return validate(Share, value)
    if len(value) != 1:
        refuse(
            (), f"a layer is one `kind: {{fields}}`, found {shown(value)}; are the fields indented under it?"
        )
    ((word, fields),) = value.items()
    if word == "pattern":
        return validate(Pattern, value)
    if word not in kinds:
        refuse(
            (word,), f"unknown layer {word!r}{nearest(word, [*kinds, 'repeat', 'share', 'pattern'])}", value
        )
    return validate(kinds[word], {} if fields is None else fields, (word,))


def dump_entry(entry: Any) -> Any:
    """The entry as a user would write it: only what was given, a bare word where nothing was."""
    if isinstance(entry, Repeat | Share | Pattern):
        return entry.model_dump(exclude_unset=True)
    fields = entry.model_dump(exclude_unset=True)
    return {entry.kind: fields} if fields else entry.kind


def _parse_entries(value: Any) -> tuple[Entry, ...]:
    if not isinstance(value, list | tuple):
        refuse((), f"expected a list of layers, found {shown(value)}", value)
    if not value:
        refuse((), "expected at least one layer, found an empty list", value)
    return tuple(under(i, parse_entry, item) for i, item in enumerate(value))


def _parse_branches(value: Any) -> tuple[tuple[Entry, ...], ...]:
    if not isinstance(value, list | tuple):
        refuse((), f"expected a list of branches, found {shown(value)}", value)
    return tuple(under(i, _parse_branch, item) for i, item in enumerate(value))


def _parse_branch(value: Any) -> tuple[Entry, ...]:
    """A branch is a layer or a list of layers."""
    if isinstance(value, list | tuple):
        if not value:
            refuse((), "an empty branch; expected a layer or a list of layers", value)
        return _parse_entries(value)
    return (parse_entry(value),)


def _dump_entries(entries: tuple[Entry, ...]) -> list[Any]:
    return [dump_entry(entry) for entry in entries]


def _dump_branches(branches: tuple[tuple[Entry, ...], ...]) -> list[Any]:
    return [dump_entry(b[0]) if len(b) == 1 else _dump_entries(b) for b in branches]


def _dump_merge(merge: Merge) -> Any:
    fields = merge.model_dump(exclude_unset=True)
    return {merge.kind: fields} if fields else merge.kind


Entries = Annotated[tuple[Any, ...], PlainValidator(_parse_entries), PlainSerializer(_dump_entries)]
Branches = Annotated[
    tuple[tuple[Any, ...], ...], PlainValidator(_parse_branches), PlainSerializer(_dump_branches)
]
AnyMerge = Annotated[Any, PlainValidator(parse_merge), PlainSerializer(_dump_merge)]


class Parallel(Layer):
    """Branches that read the same normed input and are merged: x + merge(f_1(norm(x)), f_2(norm(x)), ...).

    A branch is a layer or a list of layers. Its first layer is applied bare; the ones after it are residual
    blocks on the branch's own stream, so a branch's output holds no copy of the block's input.

    branches: two or more, each a layer or a list of layers. merge: how their outputs become one stream.
    """

    kind = "parallel"
    family = "parallel"

    takes_inputs = False

    branches: Branches = ()
    merge: AnyMerge = Mean()


class Sequential(Layer):
    """Layers one after another as one block: x + f_k(... f_1(norm(x))).

    As in a parallel's branch the first layer is applied bare and the ones after it are residual blocks on
    the inner stream, unless they say otherwise.

    layers: one or more layers.
    """

    kind = "sequential"
    family = "sequential"
    takes_inputs = False

    layers: Entries = Field(default=(), validate_default=False)


class Repeat(Spec):
    """A stack again and again, with weights of its own each time.

    repeat: how often. layers: what is repeated.
    """

    repeat: int = Field(ge=1)
    layers: Entries


class Share(Spec):
    """An earlier layer again: the same weights, its own cache.

    share: the id of the layer. lora: rank of a low-rank term of this use's own, added to the layer's input
    projection (arXiv 2106.09685).
    """

    share: str
    lora: Size | None = None


class Pattern(Spec):
    """A stack in shorthand; each layer takes its fields from `defaults`."""

    pattern: Annotated[str, PlainValidator(lambda value: checked_pattern(value))]

    def entries(self) -> tuple[Entry, ...]:
        return _parse_entries(parse_pattern(self.pattern, symbols()))


def symbols() -> dict[str, str]:
    """Pattern letter -> layer kind."""
    return {cls.symbol: kind for kind, cls in layer_kinds().items() if cls.symbol}


def checked_pattern(value: Any) -> str:
    if not isinstance(value, str):
        refuse((), f"expected a pattern such as 'M-M*-', found {shown(value)}", value)
    try:
        parse_pattern(value, symbols())
    except ValueError as error:
        refuse((), str(error), value)
    return value


Entry = Layer | Repeat | Share | Pattern
