"""Colours and marks shared by the dashboard, the plots and the page.

Every colour has a relative luminance between 0.10 and 0.30, so it reads on a black and on a white ground
(contrast of at least 3 to either, WCAG 2.1).
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

FAMILIES: dict[str, tuple[str, ...]] = {
    "ssm": ("#0891b2", "#2563eb", "#0d9488", "#4f7cff"),
    "attention": ("#e8590c", "#dc2626", "#c2780a", "#e64980"),
    "channel": ("#7b8794", "#5c7080", "#8a8178"),
    "other": ("#9c36b5", "#7048e8", "#c026d3"),
}
"""Family -> shades by kind; the first is the family's most common kind."""

_FIRST_SHADE = frozenset({"mamba2", "attention", "mlp"})
WINDOW_SHADE = "#c2780a"

SOURCES = ("#5f6cf0", "#2b8a3e", "#d6336c", "#a97900", "#1c7ed6", "#9c36b5", "#c2410c", "#5c7080")
"""Data sources in the study's order, repeating when there are more."""

COMPOSITIONS: dict[str, str] = {
    "ssm only": "#0891b2",
    "attention only": "#e8590c",
    "sequential hybrid": "#2f9e44",
    "parallel hybrid": "#ae3ec9",
    "other": "#7b8794",
}

SHORT_COMPOSITIONS: dict[str, str] = {
    "ssm only": "ssm",
    "attention only": "attn",
    "sequential hybrid": "seq",
    "parallel hybrid": "par",
    "other": "other",
}

GOLD = "#b8860b"
GOOD = "#2b8a3e"
BAD = "#e03131"
QUIET = "#7b8794"
ACCENT = "#5f6cf0"

MARKS: dict[str, tuple[str, str]] = {
    "running": ("▸", ACCENT),
    "paused": ("‖", QUIET),
    "stopped": ("▽", QUIET),
    "front": ("★", GOLD),
    "complete": ("✓", GOOD),
    "failed": ("✗", BAD),
    "infeasible": ("⊘", QUIET),
    "duplicate": ("=", QUIET),
}

MERGES: dict[str, str] = {
    "sum": "⁺",
    "mean": "ᵐ",
    "normed_mean": "ⁿ",
    "subtract": "⁻",
    "concat": "ᶜ",
    "gate": "ᵍ",
    "cross_attention": "ˣ",
}
"""Merge -> the mark after a closed bracket; a merge that is not listed has a degree sign."""


def layer_colour(family: str, kind: str, windowed: bool = False) -> str:
    """A layer's colour: its family's hue, its kind's shade."""
    if windowed and family == "attention":
        return WINDOW_SHADE
    shades = FAMILIES.get(family, FAMILIES["other"])
    if kind in _FIRST_SHADE or len(shades) == 1:
        return shades[0]
    return shades[1 + zlib.crc32(kind.encode()) % (len(shades) - 1)]


def source_colour(source: str, sources: Sequence[str]) -> str:
    """A data source's colour, by its place among the study's sources."""
    place = sources.index(source) if source in sources else len(sources)
    return SOURCES[place % len(SOURCES)]


def leaves(layout: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every layer of a layout, those inside parallels included, in order."""
    for item in layout:
        if is_parallel(item):
            for branch in item.get("branches", ()):
                yield from leaves(branch)
        else:
            yield item


def is_parallel(item: dict[str, Any]) -> bool:
    """Whether a layout item is a parallel rather than a layer."""
    return item.get("kind") == "parallel" or "branches" in item


def composition(layout: Sequence[dict[str, Any]]) -> str:
    """How a layout mixes its sequence mixers; a key of `COMPOSITIONS`."""
    families = {layer.get("family") for layer in leaves(layout)} & {"ssm", "attention"}
    if families == {"ssm"}:
        return "ssm only"
    if families == {"attention"}:
        return "attention only"
    if not families:
        return "other"
    return "parallel hybrid" if any(_mixes(item) for item in layout) else "sequential hybrid"


def _mixes(item: dict[str, Any]) -> bool:
    if not is_parallel(item):
        return False
    found = {layer.get("family") for layer in leaves([item])}
    return {"ssm", "attention"} <= found
