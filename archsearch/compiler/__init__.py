"""Graph -> torch modules."""

from archsearch.compiler.build import compile_model
from archsearch.compiler.model import LanguageModel, ModelState

__all__ = ["LanguageModel", "ModelState", "compile_model"]
