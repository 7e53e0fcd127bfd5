"""Held-out text and fresh recall questions, the same for every candidate of a study.

Shape suffixes: b = sequence, l = position within it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from archsearch.data.facts import pack_documents, write_document
from archsearch.data.mqar import generate_mqar
from archsearch.data.random_streams import IGNORE, named_generator
from archsearch.data.sources import text_tokens
from archsearch.data.spec import DomainSpec, FactsSpec, MqarSpec, SourceSpec, TextSpec, find_source

Ids = npt.NDArray[np.int64]

RECALL_TASKS = ("mqar", "facts")


@dataclass(frozen=True)
class RecallSet:
    """Recall sequences with numbered questions; all arrays are int64 (count, length)."""

    inputs_bl: Ids
    targets_bl: Ids
    """What should follow each position of an answer; IGNORE elsewhere."""
    question_bl: Ids
    """The question (0 .. questions - 1, over the whole set) that a target belongs to; -1 elsewhere."""

    @property
    def questions(self) -> int:
        """How many questions the set asks."""
        return int(self.question_bl.max()) + 1

    def accuracy(self, predictions_bl: npt.NDArray[np.integer]) -> float:
        """Share of the questions all of whose answer ids equal `predictions_bl` (count, length)."""
        asked_bl = self.question_bl >= 0
        wrong = self.question_bl[asked_bl & (predictions_bl != self.targets_bl)]
        return 1.0 - len(np.unique(wrong)) / self.questions


def text_windows(
    source: str | SourceSpec, split: str, *, context: int, max_tokens: int, seed: int = 0
) -> tuple[Ids, Ids]:
    """Inputs and next-token targets, int64 (windows, context), spread evenly over a held-out split.

    The split is cut into as many equal cells as `max_tokens` allows, with one window at a random place in
    each, so windows never overlap. `source` is a built-in name or a text source's spec. Raises ValueError
    where the split is shorter than one window or the source is not text.
    """
    spec = _resolve(source)
    if not isinstance(spec.fields, DomainSpec | TextSpec):
        raise ValueError(f"source {spec.name!r} is a recall task; expected a text source (domain or text)")
    tokens = text_tokens(spec.fields, split)
    count = min(max_tokens, len(tokens) - 1) // context
    if count < 1:
        raise ValueError(
            f"{spec.name}: no window of {context} tokens within {len(tokens)} {split} tokens and max_tokens "
            f"{max_tokens}"
        )
    cell = (len(tokens) - 1) // count
    generator = named_generator("held-out windows", seed, context)
    start_b = cell * np.arange(count) + generator.integers(0, cell - context + 1, size=count)
    tokens_bl = tokens[start_b[:, None] + np.arange(context + 1)].astype(np.int64)
    return tokens_bl[:, :-1], tokens_bl[:, 1:]


def recall_examples(
    task: str | SourceSpec | MqarSpec | FactsSpec,
    *,
    length: int | None = None,
    count: int,
    seed: int,
    wordings: Literal["held_out", "facts", "paraphrases"] = "held_out",
) -> RecallSet:
    """`count` fresh sequences of a recall task; their random streams never meet a training stream's.

    Longer than the task's own `length` (the default), `mqar` keeps its pairs and spreads the questions by the
    same power law; `facts` keeps its facts and puts neutral sentences of the extra size before the questions.
    Facts are new and said in wordings that training never shows, unless `wordings` asks for trained ones.
    Raises ValueError where the task does not fit `length`.
    """
    if count < 1:
        raise ValueError(f"count: {count} recall examples; expected at least 1")
    own, wanted = recall_spec(task), recall_spec(task, length)
    if isinstance(wanted, MqarSpec):
        return _mqar_examples(wanted, count, seed)
    return _facts_examples(wanted, max(0, wanted.length - own.length), count, seed, wordings)


def recall_spec(
    task: str | SourceSpec | MqarSpec | FactsSpec, length: int | None = None
) -> MqarSpec | FactsSpec:
    """The fields of a recall task, at another `length` where one is given.

    Generates nothing, so a file's context lengths can be checked before anything is trained on.
    Raises ValueError where `task` is text or does not fit `length`.
    """
    fields = task if isinstance(task, MqarSpec | FactsSpec) else _resolve(task).fields
    if not isinstance(fields, MqarSpec | FactsSpec):
        raise ValueError(f"task: {task!r} is text; expected one of {', '.join(RECALL_TASKS)}")
    if length is None:
        return fields
    try:
        return type(fields).model_validate({**fields.model_dump(), "length": length})
    except ValidationError as error:
        raise ValueError(f"{type(fields).__name__} at length {length}: {error.errors()[0]['msg']}") from None


def _resolve(source: str | SourceSpec) -> SourceSpec:
    return source if isinstance(source, SourceSpec) else find_source(source)


def _mqar_examples(spec: MqarSpec, count: int, seed: int) -> RecallSet:
    generator = named_generator("held-out", "mqar", seed, spec.model_dump_json())
    inputs_bl, targets_bl, _ = generate_mqar(spec, count, generator)
    asked_bl = targets_bl != IGNORE
    question_bl = np.full_like(targets_bl, -1)
    question_bl[asked_bl] = np.arange(asked_bl.sum())
    return RecallSet(inputs_bl, targets_bl, question_bl)


def _facts_examples(spec: FactsSpec, filler: int, count: int, seed: int, wordings: str) -> RecallSet:
    stream = ("held-out", seed)
    documents = [write_document(spec, stream, n, wordings, filler) for n in range(count)]
    inputs_bl, targets_bl = pack_documents(documents, spec.length)
    question_bl = np.full_like(targets_bl, -1)
    question = 0
    for row, document in enumerate(documents):
        for start, end in document.answers:
            question_bl[row, start:end] = question
            question += 1
    return RecallSet(inputs_bl, np.where(question_bl >= 0, targets_bl, IGNORE), question_bl)
