"""Import of transformers models. Torch and transformers are loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archsearch.interop.importing import from_transformers, import_folder, load_model

__all__ = ["from_transformers", "import_folder", "load_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'archsearch.interop' has no attribute {name!r}")
    return getattr(import_module("archsearch.interop.importing"), name)
