import numpy as np
import pytest

from archsearch.data.corpora import load_domain
from archsearch.data.heldout import RecallSet, recall_examples, recall_spec, text_windows
from archsearch.data.random_streams import IGNORE
from archsearch.data.sources import open_source
from archsearch.data.spec import BUILT_IN, FactsSpec, MqarSpec
from archsearch.data.tokenizer import ByteTokenizer
from archsearch.data.wordings import WORDINGS


@pytest.mark.parametrize("context", [64, 255, 1024])
def test_windows_are_spread_over_the_split_without_overlap(context: int) -> None:
    tokens = load_domain("reference", "validation")
    inputs_bl, targets_bl = text_windows("reference", "validation", context=context, max_tokens=16_384)
    assert inputs_bl.shape == targets_bl.shape == (16_384 // context, context)
    assert inputs_bl.dtype == targets_bl.dtype == np.int64
    assert np.array_equal(inputs_bl[:, 1:], targets_bl[:, :-1])
    text, at = tokens.tobytes(), 0
    for row in np.concatenate([inputs_bl, targets_bl[:, -1:]], axis=1).astype(np.uint8):
        at = text.find(row.tobytes(), at)
        assert at >= 0
        at += context
    assert at > 0.9 * len(tokens)


def test_windows_are_the_same_each_time_and_cover_a_short_split() -> None:
    tokens = load_domain("reference", "validation")
    once = text_windows("reference", "validation", context=128, max_tokens=10**9, seed=1)
    again = text_windows(BUILT_IN["reference"], "validation", context=128, max_tokens=10**9, seed=1)
    assert np.array_equal(once[0], again[0])
    assert once[0].size > len(tokens) - 256


def test_windows_of_something_else_are_refused() -> None:
    with pytest.raises(ValueError, match="'mqar' is a recall task"):
        text_windows("mqar", "test", context=64, max_tokens=4096)
    with pytest.raises(ValueError, match="did you mean 'code'"):
        text_windows("cod", "test", context=64, max_tokens=4096)
    with pytest.raises(ValueError, match="no window of 64 tokens"):
        text_windows("code", "test", context=64, max_tokens=63)


@pytest.mark.parametrize(
    ("task", "length", "questions"), [("mqar", 32, 8), ("mqar", 256, 8), ("facts", 512, 2)]
)
def test_recall_sets_number_their_questions(task: str, length: int, questions: int) -> None:
    examples = recall_examples(task, length=length, count=20, seed=0)
    assert examples.inputs_bl.shape == examples.targets_bl.shape == examples.question_bl.shape == (20, length)
    assert examples.questions == 20 * questions
    assert np.array_equal(examples.question_bl >= 0, examples.targets_bl != IGNORE)
    per_question = np.bincount(examples.question_bl[examples.question_bl >= 0])
    assert set(per_question) == {1 if task == "mqar" else 4}
    assert examples.accuracy(examples.targets_bl) == 1.0


def test_one_wrong_byte_makes_an_answer_wrong() -> None:
    examples = recall_examples("facts", count=5, seed=0)
    predictions_bl = examples.targets_bl.copy()
    row, position = np.argwhere(examples.question_bl == 3)[2]
    predictions_bl[row, position] += 1
    assert examples.accuracy(predictions_bl) == pytest.approx(1 - 1 / examples.questions)
    predictions_bl[examples.targets_bl == IGNORE] = 7
    assert examples.accuracy(predictions_bl) == pytest.approx(1 - 1 / examples.questions)
    assert examples.accuracy(np.zeros_like(predictions_bl)) == 0.0


def questions_read_aloud(examples: RecallSet) -> list[tuple[str, str]]:
    """(the text up to an answer, the answer) of every question."""
    tokenizer, found = ByteTokenizer(), []
    for question in range(examples.questions):
        places = np.argwhere(examples.question_bl == question)
        row, first = places[0]
        found.append(
            (
                tokenizer.decode(examples.inputs_bl[row, 1 : first + 1]),
                tokenizer.decode(examples.targets_bl[row, places[:, 1]]),
            )
        )
    return found


@pytest.mark.parametrize("length", [128, 512])
def test_answers_can_be_read_off_the_text_before_them(length: int) -> None:
    for prompt, answer in questions_read_aloud(recall_examples("facts", length=length, count=30, seed=2)):
        assert answer in prompt
        question = prompt.rsplit(". ", 1)[-1]
        assert any(question.startswith(template.split("{")[0]) for template in WORDINGS["held_out"].questions)
        assert prompt.endswith((": ", "? "))


def test_held_out_facts_are_new() -> None:
    spec = BUILT_IN["facts"]
    trained, _ = open_source("facts", spec, context=128, seed=0).sequences(0, 200)
    asked = recall_examples("facts", count=200, seed=0, wordings="facts").inputs_bl
    assert not {row.tobytes() for row in trained} & {row.tobytes() for row in asked}


def test_held_out_associations_are_new() -> None:
    trained, _ = open_source("mqar", BUILT_IN["mqar"], context=128, seed=0).sequences(0, 512)
    asked = recall_examples("mqar", count=256, seed=0).inputs_bl
    assert not {row.tobytes() for row in trained} & {row.tobytes() for row in asked}


def test_longer_sequences_keep_the_pairs_and_spread_the_questions() -> None:
    short, long = (recall_examples("mqar", length=length, count=50, seed=0) for length in (32, 512))
    assert short.questions == long.questions
    assert np.argwhere(long.question_bl >= 0)[:, 1].max() > 256


def test_tasks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="MqarSpec at length 16: 16 tokens are too few for 8 pairs"):
        recall_spec("mqar", 16)
    with pytest.raises(ValueError, match="FactsSpec at length 64: 64 tokens are too few for 3 facts"):
        recall_examples(FactsSpec(), length=64, count=1, seed=0)
    with pytest.raises(ValueError, match="expected one of mqar, facts"):
        recall_spec("code")
    with pytest.raises(ValueError, match="expected at least 1"):
        recall_examples(MqarSpec(), count=0, seed=0)
