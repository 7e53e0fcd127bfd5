"""The same layout larger: width multiplies d_model and every width and head count that follows it, depth
repeats the stack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from archsearch.spec import ModelSpec, model_cost
from archsearch.spec.errors import dotted, issues_of, validate
from archsearch.spec.quantities import count_text

WIDTHS = frozenset(
    {"heads", "kv_heads", "key_heads", "value_heads", "hidden", "width"}
    | {"dt_rank", "q_rank", "kv_rank", "latent", "shared"}
)
"""Fields of layers and merges that grow with d_model. Channels a head, state sizes, numbers of experts and
of groups stay, and so do widths that a layer says as multiples of d_model."""


def scaled(spec: ModelSpec, width: float = 1, depth: int = 1) -> ModelSpec:
    """`spec`, `width` times as wide and `depth` times as deep, every value written out.

    Ids, and the weights shared by them, belong to each copy of the stack. Raises ValueError where a width
    would be no whole number, or the layers do not fit together at the new one.
    """
    if width <= 0 or depth < 1:
        raise ValueError(f"cannot scale by width={width:g}, depth={depth}: expected more than 0, at least 1")
    if width == 1 and depth == 1:
        return spec
    values = spec.resolved()
    if width != 1:
        values["d_model"] = _times(values["d_model"], width, "d_model", spec)
        values["layers"] = [_widened(entry, width, spec) for entry in values["layers"]]
    if depth != 1:
        values["layers"] = [{"repeat": depth, "layers": values["layers"]}]
    values["name"] = spec.name + f"-w{width:g}" * (width != 1) + f"-d{depth}" * (depth != 1)
    try:
        found = validate(ModelSpec, values)
    except ValidationError as error:
        issue = issues_of(error, ModelSpec)[0]
        raise ValueError(
            f"{spec.name}: cannot be scaled by width={width:g}, depth={depth}: "
            f"{dotted(issue.path)}: {issue.message}"
        ) from None
    return found


def parse_scale(text: str) -> tuple[float, int]:
    """`width=2,depth=3` as (2, 3); what is not named is 1. Raises ValueError."""
    found = {"width": 1.0, "depth": 1.0}
    for part in text.split(","):
        name, _, amount = part.partition("=")
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            raise ValueError(f"--scale: expected such as width=2,depth=2, found {text!r}") from None
    unknown = [name for name in found if name not in ("width", "depth")]
    if unknown:
        raise ValueError(f"--scale: unknown {unknown[0]!r}; expected one of: width, depth")
    if not found["depth"].is_integer() or found["depth"] < 1:
        raise ValueError(f"--scale: depth repeats the stack a whole number of times, found {text!r}")
    if not 0 < found["width"] <= 1024:
        raise ValueError(f"--scale: expected a width above 0 and up to 1024, found {text!r}")
    return found["width"], int(found["depth"])


def describe(spec: ModelSpec) -> str:
    """A model's size, for a person."""
    params = model_cost(spec, 1).total.params
    return f"d_model {spec.d_model}, {len(spec.nodes)} layers, {count_text(params)} parameters"


def _widened(entry: Any, width: float, spec: ModelSpec) -> Any:
    """An entry as `resolved` writes it, with its widths multiplied."""
    if "share" in entry:
        return entry
    (kind, fields), *_ = entry.items()
    return {kind: dict(_fields(kind, fields, width, spec))}


def _fields(kind: str, fields: dict[str, Any], width: float, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if name == "branches":
            yield name, [[_widened(entry, width, spec) for entry in branch] for branch in value]
        elif name == "layers":
            yield name, [_widened(entry, width, spec) for entry in value]
        elif name == "merge":
            (merge, inner), *_ = value.items()
            yield name, {merge: dict(_fields(merge, inner, width, spec))}
        elif name in WIDTHS and value is not None and (kind, name, value) != ("mamba1", "heads", 1):
            # Mamba-1's one head is the whole width, not a part of it.
            yield name, _times(value, width, f"{kind}.{name}", spec)
        else:
            yield name, value


def _times(value: int, width: float, what: str, spec: ModelSpec) -> int:
    found = value * width
    if not float(found).is_integer():
        raise ValueError(
            f"{spec.name}: cannot be scaled by width={width:g}: {what} {value} x {width:g} is no whole number"
        )
    return int(found)
