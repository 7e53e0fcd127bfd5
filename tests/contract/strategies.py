"""Legal model specs for hypothesis, as the plain values that YAML gives.

Widths are tiny: what these specs prove does not depend on size. Every field of every layer and merge that
has an entry below is varied; a kind that is listed in `MIXERS` but has no entry here takes part bare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from archsearch.mixers.mlp import ACTIVATIONS
from archsearch.mixers.table import MIXERS
from archsearch.spec.entries import layer_kinds
from archsearch.spec.errors import FieldError
from archsearch.spec.merges import MERGES

Fields = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

WIDTHS = st.sampled_from([8, 12, 16, 24, 32, 48, 64])
LONGEST = 48
"""Learned positions that specs are given, and so the longest context to ask of them."""


STRETCHED: list[Fields] = [
    {"interleaved": True, "scaling": "none"},
    {"scaling": {"kind": "linear", "factor": 2}},
    {"scaling": {"kind": "llama3", "factor": 8, "original_context": 16}},
    {"interleaved": True, "scaling": {"kind": "yarn", "factor": 4, "original_context": 16}},
]
"""Rotations of whole heads that are legal at every even width."""


def divisors(number: int, most: int = 8) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in range(1, most + 1) if number % n == 0])


def maybe(draw: Draw, fields: Fields, name: str, values: st.SearchStrategy[Any]) -> None:
    """Give the field a value, or leave it to its default."""
    if draw(st.booleans()):
        fields[name] = draw(values)


@st.composite
def attention_fields(draw: Draw, d_model: int) -> Fields:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    head_dim = draw(st.sampled_from([2, 4, 6, 8]))
    fields: Fields = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    if d_model % heads == 0 and d_model // heads % 2 == 0 and draw(st.booleans()):
        head_dim = d_model // heads
        del fields["head_dim"]
    if heads == kv_heads and draw(st.booleans()):
        del fields["kv_heads"]
    fractions = [f for f in (0.25, 0.5, 0.75) if int(head_dim * f) >= 2 and int(head_dim * f) % 2 == 0]
    ropes: list[Any] = [None, "none", {}, {"theta": 500.0}, *({"fraction": f} for f in fractions), *STRETCHED]
    maybe(draw, fields, "value_dim", st.integers(1, 9))
    maybe(draw, fields, "rope", st.sampled_from(ropes))
    maybe(draw, fields, "window", st.one_of(st.integers(1, 60), st.sampled_from([None, "none"])))
    maybe(draw, fields, "qk_norm", st.sampled_from(["head", "full", "none", None]))
    maybe(draw, fields, "conv", st.one_of(st.integers(2, 6), st.none()))
    maybe(draw, fields, "bias", st.booleans())
    maybe(draw, fields, "output_bias", st.booleans())
    maybe(draw, fields, "scale", st.sampled_from([0.1, 1, None]))
    maybe(draw, fields, "gate", st.sampled_from(["head", "channel", "none", None]))
    maybe(draw, fields, "sinks", st.booleans())
    maybe(draw, fields, "softcap", st.sampled_from([0.5, 30, "none", None]))
    return fields


@st.composite
def mla_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {"kv_rank": draw(st.integers(1, 9)), "nope_dim": draw(st.integers(1, 6))}
    fields["rope_dim"] = draw(st.sampled_from([2, 4, 6]))
    maybe(draw, fields, "heads", st.integers(1, 4))
    maybe(draw, fields, "q_rank", st.one_of(st.integers(1, 9), st.sampled_from([None, "none"])))
    maybe(draw, fields, "value_dim", st.integers(1, 8))
    maybe(draw, fields, "rope", st.sampled_from([None, "none", {}, {"theta": 500.0}, *STRETCHED]))
    maybe(draw, fields, "gate", st.sampled_from(["head", "channel", "none", None]))
    maybe(draw, fields, "norm_eps", st.sampled_from([1e-6, 1e-3, None]))
    maybe(draw, fields, "bias", st.booleans())
    maybe(draw, fields, "scale", st.sampled_from([0.1, 1, None]))
    return fields


@st.composite
def gated_deltanet_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {"key_dim": draw(st.integers(1, 6)), "value_dim": draw(st.integers(1, 6))}
    fields["key_heads"] = draw(st.integers(1, 3))
    maybe(draw, fields, "value_heads", st.sampled_from([fields["key_heads"] * n for n in (1, 2, 3)]))
    maybe(draw, fields, "d_conv", st.integers(2, 5))
    maybe(draw, fields, "beta_scale", st.sampled_from([1, 2]))
    maybe(draw, fields, "gate", st.booleans())
    maybe(draw, fields, "norm_eps", st.sampled_from([1e-6, 1e-3, None]))
    maybe(draw, fields, "dt_min", st.sampled_from([1e-4, 0.01]))
    maybe(draw, fields, "dt_max", st.sampled_from([0.01, 1]))
    maybe(draw, fields, "dt_floor", st.sampled_from([1e-5, 0.02]))
    maybe(draw, fields, "A_init", st.sampled_from([[0, 16], [0.5, 0.5], [0.1, 2.0]]))
    return fields


@st.composite
def gated_conv_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {}
    maybe(draw, fields, "width", st.integers(1, 40))
    maybe(draw, fields, "d_conv", st.integers(2, 5))
    maybe(draw, fields, "bias", st.booleans())
    maybe(draw, fields, "conv_bias", st.booleans())
    return fields


@st.composite
def kda_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {"heads": draw(st.integers(1, 3)), "head_dim": draw(st.integers(1, 6))}
    maybe(draw, fields, "d_conv", st.integers(2, 5))
    maybe(draw, fields, "gate_rank", st.one_of(st.integers(1, 6), st.just("full")))
    maybe(draw, fields, "beta_scale", st.sampled_from([1, 2]))
    maybe(draw, fields, "decay_bound", st.sampled_from([5, 0.1, None]))
    maybe(draw, fields, "norm_eps", st.sampled_from([1e-6, 1e-3, None]))
    maybe(draw, fields, "dt_min", st.sampled_from([1e-4, 0.01]))
    maybe(draw, fields, "dt_max", st.sampled_from([0.01, 1]))
    maybe(draw, fields, "dt_floor", st.sampled_from([1e-5, 0.02]))
    maybe(draw, fields, "A_init", st.sampled_from([[0, 16], [0.5, 0.5], [0.1, 2.0]]))
    return fields


@st.composite
def lightning_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {"heads": draw(divisors(d_model))}
    maybe(draw, fields, "head_dim", st.integers(1, 6))
    maybe(draw, fields, "decay_scale", st.sampled_from([0.1, 1, 3.5]))
    maybe(draw, fields, "activation", st.sampled_from(["silu", "gelu", "relu", "none"]))
    maybe(draw, fields, "norm_eps", st.sampled_from([1e-6, 1e-3, None]))
    return fields


@st.composite
def rglru_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {}
    maybe(draw, fields, "width", st.integers(1, 40))
    maybe(draw, fields, "heads", divisors(fields.get("width", d_model)))
    maybe(draw, fields, "d_conv", st.integers(2, 5))
    maybe(draw, fields, "a_init", st.sampled_from([[0.1, 0.5], [0.99, 0.99]]))
    return fields


@st.composite
def mamba1_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {"expand": draw(st.sampled_from([0.5, 1, 1.5, 2])), "d_state": draw(st.integers(1, 9))}
    maybe(draw, fields, "dt_rank", st.integers(1, 5))
    maybe(draw, fields, "d_conv", st.integers(2, 5))
    maybe(draw, fields, "inner_norm", st.sampled_from(["none", "rms", "weighted"]))
    maybe(draw, fields, "inner_norm_eps", st.sampled_from([1e-6, 0.1, None]))
    maybe(draw, fields, "conv_bias", st.booleans())
    maybe(draw, fields, "bias", st.booleans())
    maybe(draw, fields, "dt_min", st.sampled_from([1e-4, 0.01]))
    maybe(draw, fields, "dt_max", st.sampled_from([0.01, 1]))
    maybe(draw, fields, "dt_floor", st.sampled_from([1e-5, 0.02]))
    maybe(draw, fields, "dt_init", st.sampled_from(["random", "constant"]))
    maybe(draw, fields, "heads", divisors(int(fields["expand"] * d_model)))
    return fields


@st.composite
def mamba2_fields(draw: Draw, d_model: int) -> Fields:
    expand = draw(st.sampled_from([0.5, 1, 1.5, 2]))
    inner = int(expand * d_model)
    head_dim = draw(divisors(inner))
    fields: Fields = {"head_dim": head_dim, "d_state": draw(st.integers(1, 9))}
    fields |= draw(st.sampled_from([{"expand": expand}, {"heads": inner // head_dim}]))
    maybe(draw, fields, "groups", divisors(inner // head_dim))
    maybe(draw, fields, "norm_groups", divisors(inner))
    maybe(draw, fields, "norm_eps", st.sampled_from([1e-6, 1e-3, None]))
    maybe(draw, fields, "multipliers", st.sampled_from([[1, 0.5, 2, 0.25, 1.5], None]))
    maybe(draw, fields, "d_conv", st.integers(2, 5))
    maybe(draw, fields, "conv_bias", st.booleans())
    maybe(draw, fields, "bias", st.booleans())
    maybe(draw, fields, "gated_norm", st.sampled_from(["after", "before", "none"]))
    maybe(draw, fields, "dt_min", st.sampled_from([1e-4, 0.01]))
    maybe(draw, fields, "dt_max", st.sampled_from([0.01, 1]))
    maybe(draw, fields, "dt_floor", st.sampled_from([1e-5, 0.02]))
    maybe(draw, fields, "dt_limit", st.sampled_from([[0, float("inf")], [0.001, 0.1], [0.0, 2.0]]))
    maybe(draw, fields, "A_init", st.sampled_from([[1, 16], [0.5, 0.5], [0.1, 2.0]]))
    return fields


@st.composite
def mlp_fields(draw: Draw, d_model: int) -> Fields:
    fields: Fields = {}
    width = draw(st.sampled_from(["expand", "hidden", None]))
    if width == "expand":
        fields["expand"] = draw(st.sampled_from([0.01, 0.5, 1, 2.7, 4]))
    elif width == "hidden":
        fields["hidden"] = draw(st.integers(1, 40))
    maybe(draw, fields, "activation", st.sampled_from(list(ACTIVATIONS)))
    maybe(draw, fields, "gate_scale", st.sampled_from([0.5, 2]))
    maybe(draw, fields, "bias", st.booleans())
    return fields


@st.composite
def moe_fields(draw: Draw, d_model: int) -> Fields:
    groups, members = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    kept = draw(st.integers(1, groups))
    fields: Fields = {"experts": groups * members, "top_k": draw(st.integers(1, kept * members))}
    if groups > 1 or draw(st.booleans()):
        fields["groups"] = groups
    if kept < groups or draw(st.booleans()):
        fields["top_groups"] = kept
    maybe(draw, fields, "hidden", st.integers(1, 12))
    maybe(draw, fields, "activation", st.sampled_from(list(ACTIVATIONS)))
    maybe(draw, fields, "router", st.sampled_from(["softmax", "sigmoid"]))
    maybe(draw, fields, "renormalise", st.sampled_from([True, False, None]))
    maybe(draw, fields, "renormalise_eps", st.sampled_from([0, 1e-6]))
    maybe(draw, fields, "routed_scale", st.sampled_from([0.5, 2]))
    maybe(draw, fields, "selection_bias", st.booleans())
    if fields.get("selection_bias"):
        maybe(draw, fields, "bias_rate", st.sampled_from([0, 0.01, None]))
    maybe(draw, fields, "balance", st.sampled_from([0, 0.1, None]))
    maybe(draw, fields, "latent", st.integers(1, 12))
    if draw(st.booleans()):
        fields["shared"] = draw(st.integers(1, 12))
        maybe(draw, fields, "shared_gate", st.booleans())
    if "shared" in fields or "latent" in fields:
        maybe(draw, fields, "bias", st.booleans())
    return fields


LAYER_FIELDS: dict[str, Callable[[int], st.SearchStrategy[Fields]]] = {
    "attention": attention_fields,
    "gated_conv": gated_conv_fields,
    "gated_deltanet": gated_deltanet_fields,
    "kda": kda_fields,
    "lightning": lightning_fields,
    "mamba1": mamba1_fields,
    "mamba2": mamba2_fields,
    "mla": mla_fields,
    "mlp": mlp_fields,
    "moe": moe_fields,
    "rglru": rglru_fields,
}


def layer_fields(kind: str, d_model: int) -> st.SearchStrategy[Fields]:
    """Fields of a layer that is legal at `d_model`."""
    return LAYER_FIELDS[kind](d_model) if kind in LAYER_FIELDS else st.just({})


def usable_kinds(d_model: int) -> list[str]:
    """Listed mixers: those with a strategy, and those that are legal bare."""
    return [kind for kind in MIXERS if kind in LAYER_FIELDS or _legal_bare(kind, d_model)]


def _legal_bare(kind: str, d_model: int) -> bool:
    try:
        layer_kinds()[kind]().resolve(d_model)
    except FieldError:
        return False
    return True


@st.composite
def mixers(draw: Draw, d_model: int) -> tuple[str, Fields]:
    kind = draw(st.sampled_from(usable_kinds(d_model)))
    return kind, draw(layer_fields(kind, d_model))


@st.composite
def blocks(draw: Draw, d_model: int, depth: int, ids: list[str], bare: bool = False) -> Any:
    """An entry: a layer, a parallel, or an earlier layer again.

    ids: names given so far, added to; a parallel's own comes after those within it, so nothing shares itself.
    """
    shape = draw(st.sampled_from(["layer"] * 3 + ["parallel"] * (depth > 0) + ["share"] * bool(ids)))
    if shape == "share":
        return {"share": draw(st.sampled_from(ids))}
    if shape == "parallel":
        kind, fields = "parallel", draw(parallel_fields(d_model, depth - 1, ids))
    else:
        kind, fields = draw(mixers(d_model))
    if not bare:
        maybe(draw, fields, "norm", st.sampled_from(["pre", "post", "sandwich", "none"]))
        maybe(draw, fields, "residual", st.booleans())
        if draw(st.integers(0, 4)) == 0:
            fields["id"] = f"named_{len(ids)}"
            ids.append(fields["id"])
    return {kind: fields} if fields or draw(st.booleans()) else kind


@st.composite
def parallel_fields(draw: Draw, d_model: int, depth: int, ids: list[str]) -> Fields:
    merge = draw(st.sampled_from(sorted(MERGES)))
    two = merge in ("subtract", "cross_attention")
    count = 2 if two else draw(st.integers(2, 3))
    if merge != "cross_attention" and draw(st.integers(0, 2)) == 0:
        return draw(shared_projection(d_model, merge, count))
    branches = []
    for _ in range(count):
        length = draw(st.integers(1, 2))
        branch = [draw(blocks(d_model, depth, ids)) for _ in range(length)]
        branches.append(branch if length > 1 or draw(st.booleans()) else branch[0])
    fields: Fields = {"branches": branches}
    if merge != "mean" or draw(st.booleans()):
        fields["merge"] = draw(merges(merge, d_model, d_model))
    return fields


@st.composite
def shared_projection(draw: Draw, d_model: int, merge: str, count: int) -> Fields:
    """Branches of one bare layer, whose inner features the merge projects."""
    if merge == "concat":
        branches = [draw(blocks(d_model, 0, [], bare=True)) for _ in range(count)]
        width = 1
    else:
        width = draw(st.sampled_from([w for w in (d_model // 2, d_model, d_model * 2) if w % 4 == 0]))
        equal: list[Any] = [
            {"mlp": {"hidden": width}},
            {"mamba2": {"expand": width / d_model, "head_dim": 4, "d_state": 3}},
            {"attention": {"heads": width // 4, "kv_heads": 1, "head_dim": 4}},
        ]
        branches = [draw(st.sampled_from(equal)) for _ in range(count)]
    fields = draw(merge_fields(merge, d_model, width)) | {"projection": "shared"}
    return {"branches": branches, "merge": {merge: fields}}


@st.composite
def merges(draw: Draw, kind: str, d_model: int, width: int) -> Any:
    fields = draw(merge_fields(kind, d_model, width))
    return {kind: fields} if fields else draw(st.sampled_from([kind, {kind: {}}, {kind: None}]))


@st.composite
def merge_fields(draw: Draw, kind: str, d_model: int, width: int) -> Fields:
    fields: Fields = {}
    if kind != "normed_mean":
        maybe(draw, fields, "norm", st.booleans())
    maybe(draw, fields, "scale", st.sampled_from(["none", "scalar", "vector"]))
    if kind == "gate":
        maybe(draw, fields, "by", st.sampled_from(["scalar", "vector", "token"]))
    if kind == "normed_mean":
        maybe(draw, fields, "heads", divisors(width, 4))
    if kind == "cross_attention":
        heads = draw(divisors(d_model, 4))
        fields |= {"heads": heads, "query": draw(st.integers(0, 1))}
        maybe(draw, fields, "kv_heads", divisors(heads))
        maybe(draw, fields, "window", st.integers(1, 60))
        maybe(draw, fields, "residual", st.booleans())
    return fields


@st.composite
def stacks(draw: Draw, d_model: int, depth: int) -> list[Any]:
    ids: list[str] = []
    entries: list[Any] = []
    for _ in range(draw(st.integers(1, 4))):
        entry = draw(blocks(d_model, depth, ids))
        if draw(st.integers(0, 3)) == 0:
            entry = {"repeat": draw(st.integers(1, 3)), "layers": [entry]}
        entries.append(entry)
        if (source := memory_of(entry)) and draw(st.booleans()):
            entries.append({"gated_memory": {"memory_from": source}})
    if draw(st.integers(0, 4)) == 0:
        entries += draw(asked_and_asking(d_model))
    return entries


@st.composite
def asked_and_asking(draw: Draw, d_model: int) -> list[Any]:
    """An attention layer and one that reads its keys and values, and so takes much from it."""
    asked, asking = draw(attention_fields(d_model)), draw(attention_fields(d_model))
    taken = ("kv_heads", "head_dim", "value_dim", "window", "rope")
    asking = {name: value for name, value in asking.items() if name not in taken}
    asking["heads"] = asked.get("kv_heads", asked["heads"]) * draw(st.integers(1, 3))
    return [{"attention": asked | {"id": "asked"}}, {"attention": asking | {"kv_from": "asked"}}]


def memory_of(entry: Any) -> str | None:
    """The id by which a later layer can read this one's memory."""
    kind, fields = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
    tells = kind in MIXERS and "memory" in layer_kinds()[kind].tells
    return fields.get("id") if tells and fields else None


@st.composite
def specs(draw: Draw, depth: int = 2) -> Fields:
    """A legal model spec."""
    d_model = draw(WIDTHS)
    fields: Fields = {"d_model": d_model}
    fields |= draw(st.sampled_from([{"tokenizer": "bytes"}, {"vocab_size": 11}, {"vocab_size": 40}]))
    maybe(draw, fields, "name", st.sampled_from(["a", "2026-01-01", "no", "1e3", "a: b"]))
    norms: list[Any] = [
        "layernorm",
        "rmsnorm",
        {"kind": "layernorm", "placement": "post"},
        {"placement": "sandwich", "eps": 1e-3},
        {"placement": "none"},
    ]
    maybe(draw, fields, "norm", st.sampled_from(norms))
    maybe(draw, fields, "final_norm", st.booleans())
    embedding: Fields = {}
    maybe(draw, embedding, "tied", st.booleans())
    maybe(draw, embedding, "std", st.sampled_from([0.02, 0.5]))
    maybe(draw, embedding, "positions", st.sampled_from([None, {"learned": LONGEST}]))
    maybe(draw, fields, "embedding", st.just(embedding))
    scales = st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("embedding", "residual", "logits"), st.sampled_from([0.5, 2]))
    )
    maybe(draw, fields, "scales", scales)
    if draw(st.integers(0, 3)) == 0:
        return fields | draw(patterns(d_model))
    fields["layers"] = draw(stacks(d_model, depth))
    return fields


@st.composite
def patterns(draw: Draw, d_model: int) -> Fields:
    """A stack in shorthand, whose layers take their fields from `defaults`."""
    text = draw(st.sampled_from(["M", "M-", "-*", "M-M*-", "M (M|*) -", "(M|(*|-)M)", "(*-|M|-)M"]))
    defaults = {
        "attention": draw(attention_fields(d_model)),
        "mamba2": draw(mamba2_fields(d_model)),
        "parallel": {"merge": draw(st.sampled_from(["mean", "concat", {"gate": {"by": "token"}}]))},
    }
    if draw(st.booleans()):
        defaults["mlp"] = draw(mlp_fields(d_model))
    layers: Any = {"pattern": text} if draw(st.booleans()) else {"layers": [{"pattern": text}, "mlp"]}
    return {"defaults": defaults, **layers}
