"""In-context recall in English: a document states invented facts, then asks some of them.

Document n is a pure function of (stream, n); the wording changes how its facts are said and asked, never the
facts. So `facts` and `paraphrases` of one stream say the same things in different words.

Shape suffixes: b = document, l = position.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from archsearch.data.random_streams import IGNORE, named_generator
from archsearch.data.spec import FactsSpec
from archsearch.data.wordings import (
    ATTRIBUTES,
    FILLER_ENDINGS,
    FILLER_SUBJECTS,
    FILLER_VERBS,
    INVENTED,
    WORDINGS,
)
from archsearch.spec.vocabulary import END_OF_DOCUMENT

Ids = npt.NDArray[np.int64]
Stream = tuple[str | int, ...]


@dataclass(frozen=True)
class Fact:
    """`name` has, as its `attribute`, `value`."""

    name: str
    attribute: str
    value: str


@dataclass(frozen=True)
class FactsDocument:
    """ASCII text and the [start, end) of each answer within it, in the order asked."""

    text: str
    answers: tuple[tuple[int, int], ...]


def draw_facts(spec: FactsSpec, stream: Stream, n: int) -> tuple[list[Fact], list[Fact]]:
    """The facts of document n in the order stated, and those asked in the order asked.

    All names and values of a document differ, so each question has one right answer.
    """
    generator = named_generator("facts", *stream, n)
    words = generator.choice(len(INVENTED), size=2 * spec.facts, replace=False)
    attributes = generator.integers(0, len(ATTRIBUTES), size=spec.facts)
    stated = [
        Fact(INVENTED[name], ATTRIBUTES[attribute], INVENTED[value])
        for name, attribute, value in zip(words[: spec.facts], attributes, words[spec.facts :], strict=True)
    ]
    asked = generator.permutation(spec.facts)[: spec.questions]
    return stated, [stated[i] for i in asked]


def write_document(spec: FactsSpec, stream: Stream, n: int, wordings: str, filler: int = 0) -> FactsDocument:
    """Document n in one of WORDINGS, with up to `filler` bytes of other sentences before the questions."""
    stated, asked = draw_facts(spec, stream, n)
    said = WORDINGS[wordings]
    generator = named_generator("wording", wordings, *stream, n)
    sentences = [_say(_pick(said.statements, generator), fact) for fact in stated]
    sentences += _filler_sentences(filler, generator)
    text = "".join(sentence + " " for sentence in sentences)
    answers = []
    for fact in asked:
        sentence = _say(_pick(said.questions, generator), fact)
        end = len(text) + len(sentence) - 1
        answers.append((end - len(fact.value), end))
        text += sentence + " "
    return FactsDocument(text.rstrip(" "), tuple(answers))


def pack_documents(documents: Sequence[FactsDocument], length: int) -> tuple[Ids, Ids]:
    """Next-byte inputs and targets, int64 (count, length), one document a row.

    A row is END_OF_DOCUMENT, the document, END_OF_DOCUMENT; targets beyond that are IGNORE, so that padding
    bears no loss. The target of document byte i stands at position i.
    """
    inputs_bl = np.full((len(documents), length), END_OF_DOCUMENT, dtype=np.int64)
    targets_bl = np.full((len(documents), length), IGNORE, dtype=np.int64)
    for row, document in enumerate(documents):
        ids_l = np.frombuffer(document.text.encode("ascii"), dtype=np.uint8)
        assert len(ids_l) < length, "FactsSpec promises that every document fits"
        inputs_bl[row, 1 : len(ids_l) + 1] = ids_l
        targets_bl[row, : len(ids_l)] = ids_l
        targets_bl[row, len(ids_l)] = END_OF_DOCUMENT
    return inputs_bl, targets_bl


def _pick(templates: tuple[str, ...], generator: np.random.Generator) -> str:
    return templates[generator.integers(len(templates))]


def _say(template: str, fact: Fact) -> str:
    return template.format(name=fact.name, attribute=fact.attribute, value=fact.value)


def _filler_sentences(size: int, generator: np.random.Generator) -> list[str]:
    sentences: list[str] = []
    while True:
        subject, verb, ending = (_pick(w, generator) for w in (FILLER_SUBJECTS, FILLER_VERBS, FILLER_ENDINGS))
        size -= len(sentence := f"The {subject} {verb} {ending}.") + 1
        if size < 0:
            return sentences
        sentences.append(sentence)
