"""archsearch's own source files as the flat modules that transformers loads from a model's folder.

transformers copies the files that a module imports relatively, one folder deep: `archsearch.mixers.mamba2`
becomes archsearch_mixers_mamba2.py beside the others. Nothing in them is rewritten but the imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "archsearch"
HERE = "archsearch.interop.remote."
ROOTS = (f"{HERE}configuration_archsearch", f"{HERE}modeling_archsearch")


def write_code(folder: Path) -> None:
    """The two modules that transformers asks for, and every file of archsearch that they need."""
    waiting, done = list(ROOTS), set()
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        tree, lines = _read(module)
        waiting += _replace_imports(tree, lines)
        _drop_loops_over_modules(tree, lines)
        (folder / f"{flat(module)}.py").write_text("".join(lines))


def flat(module: str) -> str:
    """The module's name in the folder."""
    return module.removeprefix(HERE).replace(".", "_")


def _read(module: str) -> tuple[ast.Module, list[str]]:
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    text = Path(found.origin).read_text()
    return ast.parse(text), text.splitlines(keepends=True)


def _replace_imports(tree: ast.Module, lines: list[str]) -> Iterator[str]:
    """Make imports from archsearch relative, in place; the modules that they name."""
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Import) and any(a.name.startswith(PACKAGE) for a in node.names))
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != PACKAGE:
            continue
        assert node.module is not None
        given = node.names[0]
        if _is_module(inner := f"{node.module}.{given.name}"):  # `from archsearch.spec import merges`
            old = f"from {node.module} import {ast.unparse(given)}"
            # transformers finds files by `from .name import`, and so not by the form that is meant.
            name = flat(inner)
            new = f"from .{name} import __doc__ as _; from . import {name} as {given.asname or given.name}"
        else:
            inner = node.module
            old, new = f"from {inner} import", f"from .{flat(inner)} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(old, new)
        yield inner


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package
        return False


def _drop_loops_over_modules(tree: ast.Module, lines: list[str]) -> None:
    """A package that loads all its modules becomes a file without any; whoever needs one imports it."""
    for node in tree.body:
        if isinstance(node, ast.For) and "iter_modules" in ast.unparse(node.iter):
            for i in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[i] = ""
