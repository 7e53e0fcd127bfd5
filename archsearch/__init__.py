"""archsearch: declarative architecture search for hybrid language models.

The names below are loaded on first use, so that importing the package, its spec language or its
command line loads neither torch nor ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ModelSpec": "archsearch.spec",
    "SpecError": "archsearch.spec",
    "compile_model": "archsearch.compiler",
    "load_spec": "archsearch.spec",
}

if TYPE_CHECKING:
    from archsearch.compiler import compile_model
    from archsearch.spec import ModelSpec, SpecError, load_spec

__all__ = ["ModelSpec", "SpecError", "__version__", "compile_model", "load_spec"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'archsearch' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
