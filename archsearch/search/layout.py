"""A spec's graph as the record draws it: one glyph a layer, parallel branches beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archsearch.spec import Node


def draw(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """The layout of a trial's record (`archsearch.study.schema.Layout`); a sequential as its layers."""
    return [drawn for node in nodes for drawn in _draw(node)]


def pattern(nodes: Sequence[Node]) -> str:
    """The same as plain text: `M-(M|A)-`, windowed attention in lower case."""
    return "".join(_text(node) for node in nodes)


def drawn_text(layout: Sequence[dict[str, Any]]) -> str:
    """The text of a layout that was drawn, merges named: `M-(M|A)concat-`."""
    return "".join(map(_drawn_item, layout))


def _drawn_item(item: dict[str, Any]) -> str:
    if item["kind"] == "parallel":
        return "(" + "|".join(drawn_text(branch) for branch in item["branches"]) + ")" + item["merge"]
    glyph = str(item["glyph"])
    return glyph.lower() if item.get("window") else glyph


def _draw(node: Node) -> list[dict[str, Any]]:
    if node.merge is not None:
        branches = [draw(branch) for branch in node.branches]
        return [{"kind": "parallel", "branches": branches, "merge": node.merge.kind}]
    if node.branches:
        return draw(node.branches[0])
    found = {"glyph": node.layer.glyph, "kind": node.kind, "family": node.layer.family}
    window = getattr(node.layer, "window", None)
    return [found | ({"window": window} if window else {})]


def _text(node: Node) -> str:
    if node.merge is not None:
        return "(" + "|".join(pattern(branch) for branch in node.branches) + ")"
    if node.branches:
        return pattern(node.branches[0])
    glyph = node.layer.glyph
    return glyph.lower() if getattr(node.layer, "window", None) else glyph
