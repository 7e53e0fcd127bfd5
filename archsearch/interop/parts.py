"""What families are made of: each part gives an entry of `layers` together with the rules of its weights.

`at` is the source's name of the module; the other names default to those that most families use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from archsearch.interop.blueprint import Part, Trunk
from archsearch.interop.fields import Fields
from archsearch.interop.rules import CONV, Rule, Rules, linear

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
"""transformers' activation -> the gated MLP's activation here."""


def trunk(
    c: Fields,
    *,
    eps: float,
    stem: str = "model",
    embedding: str = "embed_tokens",
    norm: str = "norm",
    unit_offset: bool = False,
    scales: Mapping[str, float | None] | None = None,
) -> Trunk:
    """Embedding, final norm and head, tied or not. scales: multipliers; one of 1 or None is left out."""
    path = PurePath(c._name_or_path)
    values: dict[str, Any] = {
        "name": path.name if path.name and path.suffix != ".json" else c.model_type,
        "vocab_size": c.vocab_size,
        "d_model": c.hidden_size,
        "norm": {"eps": eps} | ({"unit_offset": True} if unit_offset else {}),
        "embedding": {"tied": c.tie_word_embeddings},
    }
    if c.initializer_range:
        values["embedding"]["std"] = c.initializer_range
    given = {name: float(scale) for name, scale in (scales or {}).items() if scale not in (None, 1)}
    if given:
        values["scales"] = given
    rules = [
        Rule((f"{stem}.{embedding}.weight",), "embedding.weight"),
        Rule((f"{stem}.{norm}.weight",), "final_norm.weight"),
    ]
    if not c.tie_word_embeddings:
        rules.append(Rule(("lm_head.weight",), "head.weight"))
    return Trunk(values, tuple(rules))


def rope(c: Fields) -> dict[str, Any]:
    """The field `rope` of attention, from transformers' `rope_parameters`."""
    given = dict(c.rope_parameters)
    kind = given.pop("rope_type", "default")
    given.pop("type", None)
    found = {"theta": float(given.pop("rope_theta"))}
    fraction = float(given.pop("partial_rotary_factor", None) or 1)
    if fraction != 1:
        found["fraction"] = fraction
    if kind != "default":
        c.refuse("rope_parameters", f"rope_type {kind!r} is not supported")
    for name in given:
        c.refuse("rope_parameters", f"{name!r} is unknown here, and it may change what the model computes")
    return found


def attention(
    at: str,
    *,
    bias: bool = False,
    output_bias: bool = False,
    qkv: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
    out: str = "o_proj",
    norms: Sequence[str] = ("q_norm", "k_norm"),
    **fields: Any,
) -> Part:
    """norms: of queries and keys, where `qk_norm` is among the fields."""
    rules = linear((f"{at}.{name}" for name in qkv), "layer.qkv_proj", bias)
    rules += linear(f"{at}.{out}", "layer.out_proj", output_bias)
    if fields.get("qk_norm"):
        pairs = zip(norms, ("q_norm", "k_norm"), strict=True)
        rules += tuple(Rule((f"{at}.{name}.weight",), f"layer.{ours}.weight") for name, ours in pairs)
    return Part("attention", {"bias": bias, "output_bias": output_bias, **fields}, rules)


def mlp(
    at: str,
    *,
    bias: bool = False,
    up: str | Sequence[str] = ("gate_proj", "up_proj"),
    down: str = "down_proj",
    **fields: Any,
) -> Part:
    """up: the gate's projection, then the values'; or the one that holds both, or that there is."""
    names = (up,) if isinstance(up, str) else up
    rules = linear((f"{at}.{name}" for name in names), "layer.up_proj", bias)
    rules += linear(f"{at}.{down}", "layer.down_proj", bias)
    return Part("mlp", {"bias": bias, **fields}, rules)


def mamba2(
    at: str, *, d_model: int, heads: int, bias: bool = False, conv_bias: bool = True, **fields: Any
) -> Part:
    """The source's in_proj gives z, x, B, C, dt, as ours does."""
    rules = linear(f"{at}.in_proj", "layer.in_proj", bias) + _conv(f"{at}.conv1d", "layer.conv", conv_bias)
    rules += tuple(Rule((f"{at}.{name}",), f"layer.{name}") for name in ("dt_bias", "A_log", "D"))
    if fields.get("gated_norm") != "none":
        rules += (Rule((f"{at}.norm.weight",), "layer.norm.weight"),)
    rules += linear(f"{at}.out_proj", "layer.out_proj", bias)
    fields["expand"] = heads * fields["head_dim"] / d_model
    return Part("mamba2", {"bias": bias, "conv_bias": conv_bias, **fields}, rules)


def _conv(theirs: str, ours: str, bias: bool) -> Rules:
    weight = Rule((f"{theirs}.weight",), f"{ours}.weight", CONV)
    return (weight, Rule((f"{theirs}.bias",), f"{ours}.bias")) if bias else (weight,)


def dt_limit(c: Fields) -> list[float]:
    """The field `dt_limit` of mamba2."""
    low, high = c.time_step_limit
    return [float(low), float(high)]
