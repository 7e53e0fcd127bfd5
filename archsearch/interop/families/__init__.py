"""One table a family of transformers models; near-twins share a file."""

from archsearch.interop.blueprint import Family
from archsearch.interop.families import bamba, llama, mamba2
from archsearch.spec.errors import SpecError, nearest

ALL: tuple[Family, ...] = (bamba.FAMILY, llama.FAMILY, mamba2.FAMILY)

FAMILIES: dict[str, Family] = {word: family for family in ALL for word in family.model_types}
"""`model_type` of a config -> its family."""


def family_of(model_type: str) -> Family:
    """Raises `SpecError` for a family that has no table."""
    if model_type not in FAMILIES:
        raise SpecError(f"model_type {model_type!r} cannot be imported{nearest(model_type, FAMILIES)}")
    return FAMILIES[model_type]
