"""Numbers as people write them: `1.5M` parameters, `64KiB` of state."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

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

_NUMBER = re.compile(r"\s*(\d+(?:_\d+)*(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-z]*)\s*")


def parse_count(text: str) -> float:
    """`2M` -> 2e6. Raises ValueError."""
    return _parse(text, COUNTS)


def parse_quantity(text: str) -> float:
    """A count, or a size in bytes (`64KiB`; `2B` is two thousand million, as everywhere in the field)."""
    return _parse(text, BYTES | COUNTS)


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


def _parse(text: str, units: dict[str, int]) -> float:
    match = _NUMBER.fullmatch(text)
    known = {unit.lower(): size for unit, size in units.items()}
    if match is None or match[2].lower() not in known:
        raise ValueError(f"expected a number such as 4M, found {text!r}")
    return float(match[1].replace("_", "")) * known[match[2].lower()]


def _count(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = parse_count(value)
        except ValueError as error:
            refuse((), str(error), value)
    if isinstance(value, float):
        if not value.is_integer():
            refuse((), f"expected a whole number, found {shown(value)}", value)
        value = int(value)
    return value


Count = Annotated[int, BeforeValidator(_count)]
"""A whole number that may be written `4M`."""
