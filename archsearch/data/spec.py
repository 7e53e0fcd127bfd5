"""What may be written under `data:`: a mixture of sources counted in tokens, and the sources themselves.

    mixture: {reference: 2, code: 1, recall: 1}
    sources:
      recall: {mqar: {pairs: 4, length: 32}}

Errors are pydantic ValidationErrors whose `loc` leads to the offending YAML key.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from archsearch.data.wordings import LONGEST_QUESTION, LONGEST_STATEMENT
from archsearch.spec.errors import nearest, quoted, refuse
from archsearch.spec.layers import Spec
from archsearch.spec.vocabulary import SYMBOLS

DOMAINS = ("reference", "code")
MIN_SYMBOLS_PER_PAIR = 16
"""With fewer symbols than this a pair, laptop-sized models did not learn MQAR within a minute."""

Length = Annotated[int, Field(gt=0, le=1 << 20)]


class DomainSpec(Spec):
    """An embedded text domain, built from the interpreter's standard library."""

    name: Literal["reference", "code"]


class TextSpec(Spec):
    """Local text: a file (.txt, .jsonl, .parquet), a folder (read recursively) or a glob.

    `path` is taken relative to the working directory; `field` is the key (.jsonl) or column (.parquet).
    """

    path: Annotated[str, Field(min_length=1)]
    field: Annotated[str, Field(min_length=1)] = "text"


class MqarSpec(Spec):
    """Multi-query associative recall (Arora et al. 2023, arXiv:2312.04927): bind `pairs`, then ask each once.

    `symbols` are used: the lower half are keys, the upper half values. `power` shapes the gaps between a
    binding and its question (density of gap g proportional to g^(power - 1): most are short).
    """

    pairs: Annotated[int, Field(gt=0)] = 8
    length: Length = 32
    symbols: Annotated[int, Field(gt=1, le=SYMBOLS)] = SYMBOLS
    power: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 0.01
    min_symbols_per_pair: Annotated[int, Field(ge=2)] = MIN_SYMBOLS_PER_PAIR

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.symbols % 2:
            refuse(
                ("symbols",),
                f"expected an even number (keys and values in equal parts), found {self.symbols}",
            )
        if self.length < 4 * self.pairs:
            refuse(
                ("length" if "length" in self.model_fields_set else "pairs",),
                f"{self.length} tokens are too few for {self.pairs} pairs and their questions; "
                f"expected a length of at least 4 * pairs = {4 * self.pairs}",
            )
        if self.symbols < self.min_symbols_per_pair * self.pairs:
            refuse(
                ("pairs" if "pairs" in self.model_fields_set else "symbols",),
                f"{self.pairs} pairs of {self.symbols} symbols are crowded and hardly learnable; expected at "
                f"most {self.symbols // self.min_symbols_per_pair} pairs, or min_symbols_per_pair: "
                f"{self.symbols // self.pairs}",
            )
        return self


class FactsSpec(Spec):
    """Documents that state `facts` invented facts in English, then ask `questions` of them."""

    length: Length = 128
    facts: Annotated[int, Field(gt=0, le=256)] = 3
    questions: Annotated[int, Field(gt=0, le=256)] = 2

    @property
    def longest_document(self) -> int:
        """Bytes of the longest document in any wording, with its end-of-document byte."""
        return self.facts * LONGEST_STATEMENT + self.questions * LONGEST_QUESTION

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.questions > self.facts:
            refuse(
                ("questions" if "questions" in self.model_fields_set else "facts",),
                f"{self.questions} questions about {self.facts} facts; expected at most one question a fact",
            )
        if self.longest_document > self.length:
            refuse(
                ("length" if "length" in self.model_fields_set else "facts",),
                f"{self.length} tokens are too few for {self.facts} facts and {self.questions} questions; "
                f"expected a length of at least {self.longest_document}",
            )
        return self


class SourceSpec(Spec):
    """One source: a mapping with one key, which names its kind."""

    domain: DomainSpec | None = None
    text: TextSpec | None = None
    mqar: MqarSpec | None = None
    facts: FactsSpec | None = None
    paraphrases: FactsSpec | None = None

    KINDS: ClassVar[tuple[str, ...]] = ("domain", "text", "mqar", "facts", "paraphrases")

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict):
            return value
        for key in value:
            if key not in cls.KINDS:
                refuse((str(key),), f"unknown kind of source {key!r}{nearest(key, cls.KINDS)}", value)
        if len(value) != 1:
            found = " and ".join(value) or "none"
            refuse((), f"expected exactly one kind of source ({quoted(cls.KINDS)}), found {found}", value)
        ((key, fields),) = value.items()
        return {key: {} if fields is None else fields}

    @model_serializer(mode="wrap")
    def _only_the_key(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: fields for key, fields in handler(self).items() if fields is not None}

    @property
    def name(self) -> str:
        """The one key: domain, text, mqar, facts or paraphrases."""
        return next(key for key in self.KINDS if getattr(self, key) is not None)

    @property
    def fields(self) -> DomainSpec | TextSpec | MqarSpec | FactsSpec:
        """What stands under the one key."""
        found: DomainSpec | TextSpec | MqarSpec | FactsSpec = getattr(self, self.name)
        return found

    @property
    def kind(self) -> Literal["text", "recall"]:
        """Which measure scores it: held-out perplexity ("text") or exact-match recall ("recall")."""
        return "text" if self.name in ("domain", "text") else "recall"

    @property
    def length(self) -> int | None:
        """Tokens of a sequence; None where the context decides (text)."""
        fields = self.fields
        return fields.length if isinstance(fields, MqarSpec | FactsSpec) else None


BUILT_IN = MappingProxyType(
    {name: SourceSpec(domain=DomainSpec(name=name)) for name in DOMAINS}  # type: ignore[arg-type]
    | {
        "mqar": SourceSpec(mqar=MqarSpec()),
        "facts": SourceSpec(facts=FactsSpec()),
        "paraphrases": SourceSpec(paraphrases=FactsSpec()),
    }
)
"""Sources that a mixture may name without declaring them."""


def find_source(name: str, declared: Mapping[str, SourceSpec] = MappingProxyType({})) -> SourceSpec:
    """The declared, else built-in, source called `name`. Raises ValueError with the nearest known name."""
    known = {**BUILT_IN, **declared}
    if name not in known:
        raise ValueError(f"unknown source {name!r}{nearest(name, known)}")
    return known[name]


class DataSpec(Spec):
    """A mixture: source -> share of the training tokens (any scale), over built-in and declared sources."""

    mixture: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
    sources: dict[str, SourceSpec] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _resolvable(self) -> Self:
        known = {**self.sources, **BUILT_IN}
        for name in self.mixture:
            if name not in known:
                refuse(("mixture", name), f"unknown source {name!r}{nearest(name, known)}")
        if max(self.mixture.values()) <= 0:
            refuse(("mixture",), "all weights are zero; expected at least one above zero")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The mixture scaled to sum to one, in the order written."""
        largest = max(self.mixture.values())
        scaled = {name: weight / largest for name, weight in self.mixture.items()}
        total = math.fsum(scaled.values())
        return {name: weight / total for name, weight in scaled.items()}

    def source(self, name: str) -> SourceSpec:
        """The declared or built-in source called `name`. Raises ValueError with the nearest known name."""
        return find_source(name, self.sources)

    def check_context(self, context: int) -> list[tuple[tuple[str, ...], str]]:
        """(loc, message) of every source in the mixture whose sequences do not fill a context exactly."""
        problems: list[tuple[tuple[str, ...], str]] = []
        for name, weight in self.mixture.items():
            length = self.source(name).length
            if weight > 0 and length is not None and context % length:
                loc: tuple[str, ...] = ("mixture", name)
                if name in self.sources:
                    loc = ("sources", name, self.source(name).name)
                    loc += ("length",) if "length" in self.source(name).fields.model_fields_set else ()
                problems.append(
                    (loc, f"sequences of {length} tokens do not divide the context of {context} tokens")
                )
        return problems
