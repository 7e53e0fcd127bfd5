"""ModelSpec: a whole language model, as a user writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, PlainValidator, field_validator, model_validator

from archsearch.spec.entries import Entries, Pattern, checked_pattern, layer_kinds
from archsearch.spec.errors import nearest, refuse, shown, validate
from archsearch.spec.graph import EMBEDDING, Expansion, GraphError, Node
from archsearch.spec.layers import Layer, Norm, Size, Spec
from archsearch.spec.vocabulary import TOKENIZERS


class NormSpec(Spec):
    """The norm of every block and of the final output, and where blocks put it unless they say otherwise.

    unit_offset: RMS norms multiply by 1 + weight, the weight starting at 0, those on queries and keys too.
    """

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    placement: Norm = "pre"
    eps: float = Field(default=1e-5, gt=0)
    unit_offset: bool = False

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _only_rms_is_offset(self) -> NormSpec:
        if self.unit_offset and self.kind != "rmsnorm":
            refuse(("unit_offset",), f"{self.kind} has no unit offset; expected kind: rmsnorm")
        return self

    def params(self, width: int) -> int:
        return width * (2 if self.kind == "layernorm" else 1)


class Positions(Spec):
    """Learned absolute positions, added to the embeddings. learned: the longest context."""

    learned: Size


class EmbeddingSpec(Spec):
    """Token embeddings and the output head.

    tied: the head is the embedding's transpose. std: of the embedding's initial values. positions: learned
    absolute positions; by default there are none, and each layer brings its own.
    """

    tied: bool = False
    std: float = Field(default=0.02, gt=0, allow_inf_nan=False)
    positions: Positions | None = None


class ScalesSpec(Spec):
    """Constant multipliers: of the embeddings, of every residual update, of the logits.

    softcap: c tanh(logits / c) in place of the logits (Gemma 2, arXiv 2408.00118), after their multiplier.
    """

    embedding: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    residual: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    logits: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    softcap: float | None = Field(default=None, gt=0, allow_inf_nan=False)


def _parse_defaults(value: Any) -> dict[str, Layer]:
    """`defaults: {attention: {heads: 4}}`: fields that layers of a kind take where they give none."""
    if not isinstance(value, dict):
        refuse((), f"expected a mapping of layer kinds, found {shown(value)}", value)
    kinds = layer_kinds()
    defaults = {}
    for word, fields in value.items():
        if isinstance(fields, Layer):
            defaults[word] = fields
            continue
        if word not in kinds:
            refuse((word,), f"unknown layer {word!r}{nearest(word, kinds)}", value)
        defaults[word] = validate(kinds[word], {} if fields is None else fields, (word,))
        if "id" in defaults[word].model_fields_set:
            refuse((word, "id"), "an id names one layer; it cannot be a default")
    return defaults


def _dump_defaults(defaults: dict[str, Layer]) -> dict[str, Any]:
    return {kind: layer.model_dump(exclude_unset=True) for kind, layer in defaults.items()}


Defaults = Annotated[dict[str, Any], PlainValidator(_parse_defaults), PlainSerializer(_dump_defaults)]


class ModelSpec(Spec):
    """A language model: vocabulary, width, and the stack of layers (`layers`, or `pattern` in shorthand).

    A ModelSpec that exists is legal: its graph has been expanded and every layer checked at its width.

    name: for people; no part of the hash. tokenizer: what turns text into token ids. vocab_size: number of
    token ids, where there is no tokenizer. d_model: width of the stream between blocks. norm: of every
    block and of the final output. final_norm: whether the last block's output is normed before the head.
    meta_tokens: learned vectors that stand before every sequence (Hymba, arXiv 2411.13676). defaults: fields
    that layers of a kind take where they give none. layers: the stack, from the embedding up. pattern: the
    stack in shorthand, in place of layers.
    """

    name: str = Field(default="model", min_length=1, max_length=200)
    tokenizer: str | None = None
    vocab_size: int | None = Field(default=None, ge=2, le=1 << 24)
    d_model: int = Field(ge=1, le=1 << 17)
    norm: NormSpec = NormSpec()
    final_norm: bool = True
    embedding: EmbeddingSpec = EmbeddingSpec()
    scales: ScalesSpec = ScalesSpec()
    meta_tokens: int = Field(default=0, ge=0, le=1 << 16)
    defaults: Defaults = Field(default_factory=dict)
    layers: Entries = Field(default=(), validate_default=False)
    pattern: Annotated[str, PlainValidator(checked_pattern)] | None = None

    @field_validator("tokenizer")
    @classmethod
    def _known_tokenizer(cls, value: str | None) -> str | None:
        if value is not None and value not in TOKENIZERS:
            refuse((), f"unknown tokenizer {value!r}{nearest(value, TOKENIZERS)}", value)
        return value

    @model_validator(mode="after")
    def _is_legal(self) -> ModelSpec:
        if self.tokenizer and self.vocab_size and self.vocab_size != TOKENIZERS[self.tokenizer]:
            has = TOKENIZERS[self.tokenizer]
            refuse(("vocab_size",), f"tokenizer {self.tokenizer!r} has {has} tokens, found {self.vocab_size}")
        if not self.tokenizer and not self.vocab_size:
            refuse((), "missing key 'tokenizer' (or 'vocab_size')")
        if bool(self.layers) == (self.pattern is not None):
            where = ("pattern",) if self.layers else ()
            refuse(where, "expected either 'layers' or 'pattern'" + (", found both" if self.layers else ""))
        try:
            _ = self.nodes
        except GraphError as error:
            refuse(error.issue.path, error.issue.message)
        return self

    @property
    def vocab(self) -> int:
        """Number of token ids."""
        return self.vocab_size or TOKENIZERS[self.tokenizer or ""]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The expanded graph."""
        expansion = Expansion(self.d_model, self.defaults, self.norm.placement)
        if self.pattern is None:
            return expansion.stack(self.layers, "layers", ("layers",))
        return expansion.stack(Pattern(pattern=self.pattern).entries(), "layers", ("pattern",))

    @cached_property
    def hash(self) -> str:
        """Canonical hash of what the model computes: equal for specs that differ in form only."""
        text = json.dumps(self.canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def canonical(self) -> dict[str, Any]:
        """The model without names or shorthand. What holds its default value is left out, so that a new
        field whose default changes nothing leaves every hash as it was."""
        return {
            "vocab": self.vocab,
            "d_model": self.d_model,
            **_said(self, {"norm", "final_norm", "embedding", "scales", "meta_tokens"}),
            "layers": [_canonical_node(node) for node in self.nodes],
        }

    def dump(self) -> dict[str, Any]:
        """The spec as plain YAML values, only what was given: `ModelSpec.model_validate` takes it back."""
        return _plain(self.model_dump(exclude_unset=True))

    def resolved(self) -> dict[str, Any]:
        """The same model written out: repeats unrolled, every default value shown."""
        head = self.model_dump(exclude={"layers", "pattern", "defaults"})
        nodes = [inner for node in self.nodes for inner in node.walk()]
        used = {node.owner for node in nodes} | {path for node in nodes for path in _streams(node)}
        places = [path for path in dict.fromkeys(node.path for node in nodes) if path in used]
        names = {path: f"layer_{i}" for i, path in enumerate(places)}
        head["layers"] = [_written_out(node, names) for node in self.nodes]
        return _plain({key: value for key, value in head.items() if value is not None})


STRUCTURE = frozenset({"branches", "merge", "layers", "inputs", "lora"})
"""Fields of layers that a node holds in another form."""


def _said(spec: Spec, fields: set[str]) -> dict[str, Any]:
    """Those of the fields that hold something else than their default, parts by their own fields."""
    found: dict[str, Any] = {}
    for name in sorted(fields):
        value, default = getattr(spec, name), type(spec).model_fields[name].default
        if isinstance(value, Spec):
            # Where the model's norm goes is said by every node for itself.
            said = _said(value, set(type(value).model_fields) - {"placement"})
            if said or default is None:
                found[name] = said
        elif value != default:
            found[name] = _plain(value)
    return found


def _streams(node: Node) -> list[str]:
    """Paths of the nodes that this one reads."""
    return [*node.reads.values(), *(name for name in node.inputs if name != EMBEDDING)]


def _canonical_node(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"lora": node.lora} if node.lora else {}
    if node.owner is not None:
        return found | {"share": node.owner}
    hidden = STRUCTURE | {"id", "norm", "residual"} | set(node.layer.references.values())
    fields = _said(node.layer, set(type(node.layer).model_fields) - hidden)
    found |= {"kind": node.kind, "fields": fields, "norm": node.norm, "residual": node.residual}
    if node.inputs:
        found["inputs"] = list(node.inputs)
    if node.reads:
        found["reads"] = dict(node.reads)
    if node.branches:
        found["branches"] = [[_canonical_node(n) for n in branch] for branch in node.branches]
    if node.merge is not None:
        found["merge"] = {"kind": node.merge.kind, **_said(node.merge, set(type(node.merge).model_fields))}
    return found


def _written_out(node: Node, names: Mapping[str, str]) -> Any:
    """A node as an entry that says everything. names: path of each layer that others use -> its id."""
    lora = {"lora": node.lora} if node.lora else {}
    if node.owner is not None:
        return {"share": names[node.owner], **lora}
    fields = node.layer.model_dump(exclude={*STRUCTURE, "id"})
    fields = {name: value for name, value in fields.items() if value is not None or name == "rope"}
    fields |= {"norm": node.norm, "residual": node.residual, **lora}
    if node.path in names:
        fields["id"] = names[node.path]
    if node.inputs:
        fields["inputs"] = [names.get(path, path) for path in node.inputs]
    fields |= {node.layer.references[role]: names[path] for role, path in node.reads.items()}
    branches = [[_written_out(n, names) for n in branch] for branch in node.branches]
    if node.merge is not None:
        merge = {name: value for name, value in node.merge.model_dump().items() if value is not None}
        fields |= {"branches": branches, "merge": {node.merge.kind: merge}}
    elif branches:
        fields["layers"] = branches[0]
    return {node.kind: fields}


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON take it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
