"""Reads the standard library's documentation and code as documents, module by module in a fixed order."""

import ast
import inspect
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from archsearch.data.splitting import Document
from archsearch.data.stripping import docstring_nodes, strip_source

MIN_DOCSTRING = 80

_SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_SKIPPED_PREFIXES = (
    "encodings.",  # tables of characters, nearly the same in a hundred modules
    "pydoc_data.",  # the text of `reference`, as one string literal
    "_sysconfigdata",  # variables of the machine that built the interpreter
)


def read_reference(library: Path) -> list[Document]:
    """Docstrings longer than MIN_DOCSTRING characters, then the topics of `help()`; one document each."""
    from pydoc_data.topics import topics  # half a megabyte that only this function needs

    documents = []
    for module, _, tree in library_sources(library):
        for _, _, docstring in docstring_nodes(tree):
            text = inspect.cleandoc(docstring)
            if len(text) > MIN_DOCSTRING:
                documents.append(Document(module, text))
    documents += [Document(f"topics:{key}", text.strip()) for key, text in sorted(topics.items())]
    return documents


def read_code(library: Path) -> list[Document]:
    """Each module's source without docstrings and comments; modules that hold nothing else are left out."""
    documents = [
        Document(module, strip_source(source, tree)) for module, source, tree in library_sources(library)
    ]
    return [document for document in documents if document.text.strip()]


def library_sources(library: Path) -> Iterator[tuple[str, str, ast.Module]]:
    """(module, source, syntax tree) of every module that parses, tests and installed packages excluded."""
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        module = ".".join(place.with_suffix("").parts)
        if _SKIPPED_FOLDERS.intersection(place.parts) or module.startswith(_SKIPPED_PREFIXES):
            continue
        try:
            with warnings.catch_warnings(), tokenize.open(path) as file:
                warnings.simplefilter("ignore")  # invalid escapes in old modules are not the reader's concern
                source = file.read()
                tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue
        yield module, source, tree
