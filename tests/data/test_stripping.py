import ast
import inspect
import sysconfig
import tokenize
from itertools import islice
from pathlib import Path

import pytest

from archsearch.data.standard_library import library_sources
from archsearch.data.stripping import docstring_nodes, strip_source

CASES = {
    "comments and docstrings": (
        '#!python\n"""Module."""\nimport os  # why\n\n\n# gone\ndef f():\n    """Doc."""\n    return 1\n',
        "import os\n\ndef f():\n    return 1\n",
    ),
    "a body of a docstring alone keeps a statement": (
        'class A:\n    """Only this."""\n\n    # and this\n',
        "class A:\n    pass\n",
    ),
    "one-liners": ('class A: "doc"\ndef f(): "doc"; return 2\n', "class A: pass\ndef f(): pass; return 2\n"),
    "strings that look like comments": (
        "x = '# no' # yes\ny = '''\n# no\n\n\n\n'''\n",
        "x = '# no'\ny = '''\n# no\n\n\n\n'''\n",
    ),
    "f-strings over lines": ("x = f'''{1}\n\n\n# no\n'''\n", "x = f'''{1}\n\n\n# no\n'''\n"),
    "parentheses": ('def f():\n    ("a"\n     "b")\n    return 3\n', "def f():\n    return 3\n"),
    "continued docstring": ('def f():\n    "a" \\\n    "b"\n    return 3\n', "def f():\n    return 3\n"),
    "non-ASCII before a docstring": ('class É: "dóc"  # ö\nx = 1\n', "class É: pass\nx = 1\n"),
    "nothing else": ('"""Module."""\n# end', "\n"),
}


def without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for owner, docstring, _ in list(docstring_nodes(tree)):
        owner.body.remove(docstring)  # type: ignore[attr-defined]
    return dump(tree)


def dump(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if hasattr(node, "body") and isinstance(node.body, list):
            node.body = [child for child in node.body if not isinstance(child, ast.Pass)]
    return ast.dump(tree)


@pytest.mark.parametrize("name", CASES)
def test_stripped_text(name: str) -> None:
    source, expected = CASES[name]
    assert strip_source(source) == expected


@pytest.mark.parametrize("source", [source for source, _ in CASES.values()])
def test_stripping_keeps_the_program(source: str) -> None:
    assert dump(ast.parse(strip_source(source))) == without_docstrings(source)


def test_stripping_keeps_the_programs_of_the_standard_library() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    modules = list(islice(library_sources(library), 0, None, 20))
    assert len(modules) > 20
    for module, source, _ in modules:
        stripped = strip_source(source)
        assert dump(ast.parse(stripped)) == without_docstrings(source), module
        tokens = tokenize.generate_tokens(iter(stripped.splitlines(keepends=True)).__next__)
        assert not any(token.type == tokenize.COMMENT for token in tokens), module


def test_indentation_and_inner_blank_lines_are_kept() -> None:
    source = inspect.getsource(inspect.getsource)
    kept = strip_source(source).splitlines()
    assert kept == [line for line in source.splitlines() if line in kept]
    assert kept[1].startswith("    ")
