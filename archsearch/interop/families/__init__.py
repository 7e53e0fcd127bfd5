"""One table a family of transformers models; near-twins share a file."""

from archsearch.interop.blueprint import Family
from archsearch.interop.families import (
    attention_only,
    bailing_hybrid,
    bamba,
    deepseek_v3,
    falcon_h1,
    gemma2,
    granite,
    jamba,
    kimi_linear,
    lfm2,
    lfm3,
    llama,
    mamba,
    mamba2,
    minimax,
    nemotron_h,
    olmo_hybrid,
    qwen_hybrid,
    recurrent_gemma,
    zamba,
)
from archsearch.spec.errors import SpecError, nearest

ALL: tuple[Family, ...] = (
    *attention_only.FAMILIES,
    bailing_hybrid.FAMILY,
    bamba.FAMILY,
    deepseek_v3.FAMILY,
    falcon_h1.FAMILY,
    gemma2.FAMILY,
    granite.FAMILY,
    jamba.FAMILY,
    kimi_linear.FAMILY,
    lfm2.LFM2,
    lfm2.LFM2_MOE,
    lfm3.FAMILY,
    llama.LLAMA,
    llama.QWEN3,
    mamba.FAMILY,
    mamba2.FAMILY,
    minimax.FAMILY,
    nemotron_h.FAMILY,
    olmo_hybrid.FAMILY,
    qwen_hybrid.QWEN3_5,
    qwen_hybrid.QWEN3_5_MOE,
    qwen_hybrid.QWEN3_NEXT,
    recurrent_gemma.FAMILY,
    zamba.ZAMBA,
    zamba.ZAMBA2,
)

FAMILIES: dict[str, Family] = {word: family for family in ALL for word in family.model_types}
"""`model_type` of a config -> its family."""


def family_of(model_type: str) -> Family:
    """Raises `SpecError` for a family that has no table."""
    if model_type not in FAMILIES:
        raise SpecError(f"model_type {model_type!r} cannot be imported{nearest(model_type, FAMILIES)}")
    return FAMILIES[model_type]
