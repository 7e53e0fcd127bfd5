from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from archsearch.data.facts import draw_facts, pack_documents, write_document
from archsearch.data.random_streams import IGNORE
from archsearch.data.spec import FactsSpec
from archsearch.data.wordings import ATTRIBUTES, INVENTED, WORDINGS


def test_no_wording_is_in_two_sets() -> None:
    for one, other in combinations(WORDINGS.values(), 2):
        assert not {*one.statements, *one.questions} & {*other.statements, *other.questions}
    for wordings in WORDINGS.values():
        for template in (*wordings.statements, *wordings.questions):
            assert all(field in template for field in ("{name}", "{attribute}", "{value}"))
        assert all(question.endswith("{value}.") for question in wordings.questions)


def test_words_are_distinct() -> None:
    assert len(set(INVENTED)) == len(INVENTED) == 4900
    assert len(set(ATTRIBUTES)) == len(ATTRIBUTES) == 30


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(sorted(WORDINGS)), st.integers(1, 9))
def test_answers_were_stated_in_the_same_document(seed: int, n: int, wordings: str, facts: int) -> None:
    spec = FactsSpec(facts=facts, questions=min(2, facts), length=512)
    stated, asked = draw_facts(spec, ("train", seed), n)
    document = write_document(spec, ("train", seed), n, wordings)
    words = [word for fact in stated for word in (fact.name, fact.value)]
    assert len(set(words)) == 2 * facts
    assert [document.text[start:end] for start, end in document.answers] == [fact.value for fact in asked]
    asked_from = document.answers[0][0]
    for fact in stated:
        assert fact.name in document.text[:asked_from]
        assert fact.value in document.text[:asked_from]
    for fact in asked:
        assert document.text.count(fact.name) == document.text.count(fact.value) == 2
    assert len(document.text) < spec.longest_document


def test_paraphrases_say_the_same_facts_in_other_words() -> None:
    spec, stream = FactsSpec(), ("train", 0)
    texts = {wordings: write_document(spec, stream, 5, wordings).text for wordings in WORDINGS}
    assert len(set(texts.values())) == 3
    stated, _ = draw_facts(spec, stream, 5)
    for text in texts.values():
        assert all(word in text for fact in stated for word in (fact.name, fact.attribute, fact.value))


def test_a_document_depends_on_its_number_and_stream_alone() -> None:
    spec = FactsSpec()
    texts = [write_document(spec, ("train", 0), n, "paraphrases").text for n in range(50)]
    assert write_document(spec, ("train", 0), 49, "paraphrases").text == texts[49]
    assert len(set(texts)) == 50
    assert write_document(spec, ("train", 1), 0, "paraphrases").text != texts[0]
    assert write_document(spec, ("held-out", 0), 0, "paraphrases").text != texts[0]


def test_filler_comes_between_statements_and_questions() -> None:
    spec, stream = FactsSpec(length=512), ("held-out", 0)
    plain = write_document(spec, stream, 3, "facts")
    filled = write_document(spec, stream, 3, "facts", filler=200)
    assert 200 - 60 < len(filled.text) - len(plain.text) <= 200
    statements = plain.text[: plain.text.index(".", plain.text.index(".", plain.text.index(".") + 1) + 1) + 1]
    assert filled.text.startswith(statements)
    assert filled.text.endswith(plain.text[len(statements) :])


def test_packing_predicts_every_byte_and_one_end() -> None:
    document = write_document(FactsSpec(), ("train", 0), 0, "facts")
    inputs_bl, targets_bl = pack_documents([document], 128)
    ids = [0, *document.text.encode(), 0]
    scored = len(ids) - 1
    assert inputs_bl[0, :scored].tolist() == ids[:-1]
    assert targets_bl[0, :scored].tolist() == ids[1:]
    assert (targets_bl[0, scored:] == IGNORE).all()
    assert inputs_bl.dtype == targets_bl.dtype == np.int64


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"length": 64}, "length"),
        ({"facts": 4}, "facts"),
        ({"questions": 4}, "questions"),
        ({"facts": 1}, "facts"),
    ],
)
def test_documents_that_cannot_fit_are_refused(fields: dict[str, int], key: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FactsSpec(**fields)
    assert caught.value.errors()[0]["loc"] == (key,)
