"""What may be written under `data:`: a mixture of sources counted in tokens, and the sources themselves.

    mixture: {reference: 2, code: 1, recall: 1}
    sources:
      recall: {mqar: {pairs: 4, length: 32}}

Errors are pydantic ValidationErrors whose `loc` leads to the offending YAML key.
"""

import math
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from archsearch.data.wordings import LONGEST_QUESTION, LONGEST_STATEMENT
from archsearch.spec.vocabulary import SYMBOLS

DOMAINS = ("reference", "code")
MIN_SYMBOLS_PER_PAIR = 16
"""With fewer symbols than this a pair, laptop-sized models did not learn MQAR within a minute."""

Length = Annotated[int, Field(gt=0, le=1 << 20)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DomainSpec(_Strict):
    """An embedded text domain, built from the interpreter's standard library."""

    name: Literal["reference", "code"]


class TextSpec(_Strict):
    """Local text: a file (.txt, .jsonl, .parquet), a folder (read recursively) or a glob.

    `path` is taken relative to the working directory; `field` is the key (.jsonl) or column (.parquet).
    """

    path: Annotated[str, Field(min_length=1)]
    field: Annotated[str, Field(min_length=1)] = "text"


class MqarSpec(_Strict):
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
            _refuse(
                self,
                ("symbols",),
                f"{self.symbols} symbols do not halve into keys and values; use an even number",
            )
        if self.length < 4 * self.pairs:
            _refuse(
                self,
                ("length",),
                f"{self.length} tokens are too few for {self.pairs} pairs and their questions; "
                f"expected at least 4 * pairs = {4 * self.pairs}",
            )
        if self.symbols < self.min_symbols_per_pair * self.pairs:
            _refuse(
                self,
                ("pairs",),
                f"{self.pairs} pairs of {self.symbols} symbols are crowded and hardly learnable; expected at "
                f"most {self.symbols // self.min_symbols_per_pair} pairs, or a min_symbols_per_pair of at most "
                f"{self.symbols // self.pairs}",
            )
        return self


class FactsSpec(_Strict):
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
            _refuse(
                self,
                ("questions",),
                f"{self.questions} questions about {self.facts} facts; expected at most one a fact",
            )
        if self.longest_document > self.length:
            _refuse(
                self,
                ("length",),
                f"{self.length} tokens are too few for {self.facts} facts and {self.questions} questions; "
                f"expected at least {self.longest_document}",
            )
        return self


class SourceSpec(_Strict):
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
                _refuse(value, (str(key),), f"unknown kind of source {key!r}{_nearest(str(key), cls.KINDS)}")
        if len(value) != 1:
            found = " and ".join(map(str, value)) or "none"
            _refuse(value, (), f"expected exactly one kind of source ({', '.join(cls.KINDS)}), found {found}")
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


class DataSpec(_Strict):
    """A mixture: source -> share of the training tokens (any scale), over built-in and declared sources."""

    mixture: Annotated[dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
    sources: dict[str, SourceSpec] = {}

    @model_validator(mode="after")
    def _resolvable(self) -> Self:
        known = list(dict.fromkeys([*self.sources, *BUILT_IN]))
        for name in self.mixture:
            if name not in known:
                _refuse(self.mixture, ("mixture", name), f"unknown source {name!r}{_nearest(name, known)}")
        if max(self.mixture.values()) <= 0:
            _refuse(self.mixture, ("mixture",), "all weights are zero; expected at least one above zero")
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
        found = self.sources.get(name) or BUILT_IN.get(name)
        if found is None:
            raise ValueError(f"unknown source {name!r}{_nearest(name, [*self.sources, *BUILT_IN])}")
        return found

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


def _nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def _refuse(value: Any, loc: tuple[str, ...], message: str) -> NoReturn:
    """Raises a ValidationError at `loc` below the model being validated.

    Pydantic gives an error raised inside a model validator the model's own `loc`; a nested ValidationError
    keeps its own `loc` as well, which is what leads a reader to the offending key.
    """
    error = PydanticCustomError("data_spec", "{message}", {"message": message})
    raise ValidationError.from_exception_data("data", [InitErrorDetails(type=error, loc=loc, input=value)])
