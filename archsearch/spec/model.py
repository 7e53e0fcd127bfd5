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
from archsearch.spec.graph import Expansion, GraphError, Node
from archsearch.spec.layers import Layer, Norm, Size, Spec
from archsearch.spec.vocabulary import TOKENIZERS


class NormSpec(Spec):
    """The norm of every block and of the final output, and where blocks put it unless they say otherwise."""

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    placement: Norm = "pre"
    eps: float = Field(default=1e-5, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

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
    """Constant multipliers: of the embeddings, of every residual update, of the logits."""

    embedding: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    residual: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    logits: float = Field(default=1.0, gt=0, allow_inf_nan=False)


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
    defaults: fields that layers of a kind take where they give none. layers: the stack, from the embedding
    up. pattern: the stack in shorthand, in place of layers.
    """

    name: str = Field(default="model", min_length=1, max_length=200)
    tokenizer: str | None = None
    vocab_size: int | None = Field(default=None, ge=2, le=1 << 24)
    d_model: int = Field(ge=1, le=1 << 17)
    norm: NormSpec = NormSpec()
    final_norm: bool = True
    embedding: EmbeddingSpec = EmbeddingSpec()
    scales: ScalesSpec = ScalesSpec()
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
        """The model without names, shorthand, or defaults left unsaid."""
        return {
            "vocab": self.vocab,
            "d_model": self.d_model,
            "norm": self.norm.model_dump(exclude={"placement"}),
            "final_norm": self.final_norm,
            "embedding": self.embedding.model_dump(),
            "scales": self.scales.model_dump(),
            "layers": [_canonical_node(node) for node in self.nodes],
        }

    def dump(self) -> dict[str, Any]:
        """The spec as plain YAML values, only what was given: `ModelSpec.model_validate` takes it back."""
        return _plain(self.model_dump(exclude_unset=True))

    def resolved(self) -> dict[str, Any]:
        """The same model written out: repeats unrolled, every default value shown."""
        head = self.model_dump(exclude={"layers", "pattern", "defaults"})
        shared = sorted({n.owner for node in self.nodes for n in node.walk() if n.owner is not None})
        names = {path: f"shared_{i}" for i, path in enumerate(shared)}
        head["layers"] = [_written_out(node, names) for node in self.nodes]
        return _plain({key: value for key, value in head.items() if value is not None})


def _canonical_node(node: Node) -> dict[str, Any]:
    if node.owner is not None:
        return {"share": node.owner}
    fields = node.layer.model_dump(exclude={"id", "norm", "residual", "branches", "merge"})
    found: dict[str, Any] = {
        "kind": node.kind,
        "fields": _plain(fields),
        "norm": node.norm,
        "residual": node.residual,
    }
    if node.merge is not None:
        found["branches"] = [[_canonical_node(n) for n in branch] for branch in node.branches]
        found["merge"] = {"kind": node.merge.kind, **node.merge.model_dump()}
    return found


def _written_out(node: Node, names: Mapping[str, str]) -> Any:
    """A node as an entry that says everything. names: path of each shared layer -> its id."""
    if node.owner is not None:
        return {"share": names[node.owner]}
    fields = node.layer.model_dump(exclude={"id", "branches", "merge"})
    fields = {name: value for name, value in fields.items() if value is not None or name == "rope"}
    fields |= {"norm": node.norm, "residual": node.residual}
    if node.path in names:
        fields["id"] = names[node.path]
    if node.merge is not None:
        fields["branches"] = [[_written_out(n, names) for n in branch] for branch in node.branches]
        merge = {name: value for name, value in node.merge.model_dump().items() if value is not None}
        fields["merge"] = {node.merge.kind: merge}
    return {node.kind: fields}


def _plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON take it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
