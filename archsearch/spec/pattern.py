"""`M-M*-` shorthand: one character a layer, `(M|*)` for parallel branches, which nest.

The letters are those of Megatron's hybrid patterns: M Mamba-2, * attention, - MLP.
"""

from __future__ import annotations

from typing import Any

from archsearch.spec.errors import quoted

MAX_LENGTH = 4096
MAX_NESTING = 16
"""Parallel blocks within one another, in a pattern or written out."""


def parse_pattern(text: str, symbols: dict[str, str]) -> list[Any]:
    """The entries that `text` stands for. Raises ValueError saying which character is wrong.

    symbols: letter -> layer kind.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"a pattern of {len(text)} characters; expected at most {MAX_LENGTH}")
    entries, at = _stack(text, 0, symbols, depth=0)
    if at < len(text):
        raise ValueError(f"character {at + 1} {text[at]!r} closes nothing")
    if not entries:
        raise ValueError("an empty pattern")
    return entries


def _stack(text: str, at: int, symbols: dict[str, str], depth: int) -> tuple[list[Any], int]:
    """Read layers from `at` until the text, or the branch it is in, ends."""
    if depth > MAX_NESTING:
        raise ValueError(f"parallel branches nested deeper than {MAX_NESTING}")
    entries: list[Any] = []
    while at < len(text) and text[at] not in "|)":
        letter = text[at]
        if letter == "(":
            branches, at = _parallel(text, at, symbols, depth)
            entries.append({"parallel": {"branches": branches}})
        elif letter in symbols:
            entries.append(symbols[letter])
            at += 1
        elif letter.isspace():
            at += 1
        else:
            known = quoted(f"{symbol} {kind}" for symbol, kind in sorted(symbols.items()))
            raise ValueError(f"character {at + 1} {letter!r} is no layer; expected {known}, or (a|b)")
    return entries, at


def _parallel(text: str, start: int, symbols: dict[str, str], depth: int) -> tuple[list[Any], int]:
    branches: list[Any] = []
    at = start
    while True:
        branch, at = _stack(text, at + 1, symbols, depth + 1)
        if at >= len(text):
            raise ValueError(f"the parenthesis at character {start + 1} is never closed")
        if not branch:
            raise ValueError(f"an empty branch at character {at + 1}")
        branches.append(branch[0] if len(branch) == 1 else branch)
        if text[at] == ")":
            return branches, at + 1
