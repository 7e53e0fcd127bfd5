"""Models between transformers and archsearch, both ways. Torch and transformers are loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from archsearch.interop.exporting import to_transformers
    from archsearch.interop.importing import from_transformers, import_folder, load_model

__all__ = ["from_transformers", "import_folder", "load_model", "to_transformers"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'archsearch.interop' has no attribute {name!r}")
    home = "exporting" if name == "to_transformers" else "importing"
    return getattr(import_module(f"archsearch.interop.{home}"), name)
