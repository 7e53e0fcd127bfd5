"""Python source without its docstrings and comments, still valid and with its own indentation."""

import ast
import io
import tokenize
from collections.abc import Iterator

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_FSTRING_START = getattr(tokenize, "FSTRING_START", None)
_FSTRING_END = getattr(tokenize, "FSTRING_END", None)

Span = tuple[tuple[int, int], tuple[int, int], str]
"""From (line, column) to (line, column), lines from 1 and columns in characters, and what goes there."""


def strip_source(source: str, tree: ast.Module | None = None) -> str:
    """`source` without comments, docstrings and the blank lines they leave; `pass` where nothing remains.

    Lines must end in a bare newline. `tree` is the syntax tree of `source` where the caller has it already.
    Raises SyntaxError where `source` is not Python.
    """
    tree = tree or ast.parse(source)
    lines = source.split("\n")
    spans, inside_strings = _comments_and_strings(source)
    spans += _docstrings(tree, lines)
    touched = _cut(lines, spans)
    return _join(lines, touched, inside_strings)


def docstring_nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.Expr, str]]:
    """(owner, statement, text) of every docstring in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                text = first.value.value
                if isinstance(text, str):
                    yield node, first, text


def _docstrings(tree: ast.Module, lines: list[str]) -> list[Span]:
    spans: list[Span] = []
    for owner, node, _ in docstring_nodes(tree):
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = (node.lineno, _characters(lines[node.lineno - 1], node.col_offset))
        end = (node.end_lineno, _characters(lines[node.end_lineno - 1], node.end_col_offset))
        before, after = lines[start[0] - 1][: start[1]], lines[end[0] - 1][end[1] :].lstrip()
        alone_on_lines = not before.strip() and (not after or after.startswith("#"))
        alone_in_body = not isinstance(owner, ast.Module) and len(owner.body) == 1  # type: ignore[attr-defined]
        spans.append((start, end, "" if alone_on_lines and not alone_in_body else "pass"))
    return spans


def _characters(line: str, utf8_offset: int) -> int:
    return utf8_offset if line.isascii() else len(line.encode()[:utf8_offset].decode())


def _comments_and_strings(source: str) -> tuple[list[Span], set[int]]:
    """Spans of comments, and the numbers of the lines that start inside a string."""
    comments: list[Span] = []
    inside: set[int] = set()
    open_fstrings: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.append((token.start, token.end, ""))
        elif token.type == tokenize.STRING:
            inside.update(range(token.start[0] + 1, token.end[0] + 1))
        elif token.type == _FSTRING_START:
            open_fstrings.append(token.start[0])
        elif token.type == _FSTRING_END:
            inside.update(range(open_fstrings.pop() + 1, token.end[0] + 1))
    return comments, inside


def _cut(lines: list[str], spans: list[Span]) -> set[int]:
    """Replaces `spans` in `lines`, last first so that the others keep their places; returns lines touched."""
    touched: set[int] = set()
    for (first, start), (last, end), instead in sorted(spans, reverse=True):
        lines[first - 1] = lines[first - 1][:start] + instead + lines[last - 1][end:]
        for number in range(first + 1, last + 1):
            lines[number - 1] = ""
        touched.update(range(first, last + 1))
    return touched


def _join(lines: list[str], touched: set[int], inside_strings: set[int]) -> str:
    """The lines that still say something, with at most one blank line in a row outside strings."""
    kept: list[str] = []
    for number, line in enumerate(lines, start=1):
        if number in touched:
            line = line.rstrip()
            if not line:
                continue
        elif number not in inside_strings and not line.strip():
            if kept and not kept[-1]:
                continue
            line = ""
        kept.append(line)
    return "\n".join(kept).strip("\n") + "\n"
