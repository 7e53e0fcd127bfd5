"""Numbers as people write them: `1.5M` parameters, `64KiB` of state."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from archsearch.spec.errors import refuse, shown

COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_NUMBER = re.compile(r"(\d+(?:_\d+)*(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)")


def parse_count(text: str) -> float:
    """`2M` -> 2e6. Raises ValueError."""
    return _parse(text, COUNTS)


def parse_quantity(text: str) -> float:
    """A count, or a size in bytes (`64KiB`; `2B` is two thousand million, as everywhere in the field)."""
    return _parse(text, BYTES | COUNTS)


def parse_duration(text: str) -> float:
    """`10m` -> 600.0 seconds. Raises ValueError."""
    return _parse(text, SECONDS, "a time such as 30s, 10m or 2h")


def count_text(value: float) -> str:
    """1_500_000 -> `1.5M`."""
    for suffix, unit in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def bytes_text(value: float) -> str:
    """65536 -> `64 KiB`."""
    for suffix, unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= unit:
            return f"{value / unit:.3g} {suffix}"
    return f"{value:.3g} B"


def _parse(text: str, units: dict[str, int], expected: str = "a number such as 4M") -> float:
    match = _NUMBER.fullmatch(text.strip())
    known = {unit.lower(): size for unit, size in units.items()}
    if match is None or match[2].lower() not in known:
        raise ValueError(f"expected {expected}, found {shown(text, 80)}")
    found = float(match[1].replace("_", "")) * known[match[2].lower()]
    if math.isinf(found):
        raise ValueError(f"expected {expected}, found {shown(text, 80)}, which is beyond all numbers")
    return found


def _read(parse: Callable[[str], float], value: Any) -> Any:
    """`value`, parsed where it is text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        refuse((), str(error), value)


def _whole(value: Any) -> Any:
    if isinstance(value, float):
        if not value.is_integer():
            refuse((), f"expected a whole number, found {shown(value)}", value)
        value = int(value)
    return value


Written = Annotated[str, Field(pattern=r"^\s*\d")]
"""A number with its unit; what units there are, the readers know."""

Count = Annotated[
    int,
    BeforeValidator(lambda value: _whole(_read(parse_count, value)), json_schema_input_type=int | Written),
]
"""A whole number that may be written `4M`."""

Size = Annotated[
    int,
    BeforeValidator(lambda value: _whole(_read(parse_quantity, value)), json_schema_input_type=int | Written),
]
"""Bytes, which may be written `4GiB`."""

Duration = Annotated[
    float,
    BeforeValidator(lambda value: _read(parse_duration, value), json_schema_input_type=float | Written),
]
"""Seconds, which may be written `10m`."""
