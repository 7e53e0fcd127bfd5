import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from archsearch.data.mqar import generate_mqar
from archsearch.data.random_streams import IGNORE
from archsearch.data.spec import MqarSpec
from archsearch.spec.vocabulary import FIRST_SYMBOL


@st.composite
def specs(draw: st.DrawFn) -> MqarSpec:
    pairs = draw(st.integers(1, 16))
    symbols = draw(st.integers(pairs, 64)) * 2
    return MqarSpec(
        pairs=pairs,
        length=draw(st.integers(4 * pairs, 4 * pairs + 60)),
        symbols=symbols,
        power=draw(st.floats(0.01, 2.0)),
        min_symbols_per_pair=2,
    )


def read_aloud(spec: MqarSpec, inputs: list[int], targets: list[int]) -> None:
    """Reads one sequence as a person would, with none of the generator's own bookkeeping."""
    half = spec.symbols // 2
    bindings: dict[int, int] = {}
    for at in range(0, 2 * spec.pairs, 2):
        key, value = inputs[at] - FIRST_SYMBOL, inputs[at + 1] - FIRST_SYMBOL
        assert 0 <= key < half <= value < spec.symbols
        assert key not in bindings
        assert value not in bindings.values()
        bindings[key] = value
    asked = []
    for at, (given_id, wanted_id) in enumerate(zip(inputs, targets, strict=True)):
        symbol = given_id - FIRST_SYMBOL
        assert 0 <= symbol < spec.symbols
        if at < 2 * spec.pairs:
            assert wanted_id == IGNORE
        elif symbol in bindings:
            assert wanted_id - FIRST_SYMBOL == bindings[symbol]
            asked.append(symbol)
        else:
            assert wanted_id == IGNORE
    assert sorted(asked) == sorted(bindings)


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(0, 2**32))
def test_each_key_is_bound_once_and_asked_once(spec: MqarSpec, seed: int) -> None:
    batch = generate_mqar(spec, 5, np.random.default_rng(seed))
    assert batch.inputs_bl.shape == batch.targets_bl.shape == (5, spec.length)
    assert batch.inputs_bl.dtype == batch.targets_bl.dtype == np.int64
    for inputs, targets in zip(batch.inputs_bl.tolist(), batch.targets_bl.tolist(), strict=True):
        read_aloud(spec, inputs, targets)


def test_the_answer_does_not_follow_its_question_more_often_than_by_chance() -> None:
    batch = generate_mqar(MqarSpec(length=64), 4000, np.random.default_rng(0))
    answers_bk = np.take_along_axis(batch.targets_bl, batch.question_at_bk, axis=1)
    next_bl = np.roll(batch.inputs_bl, -1, axis=1)
    followed = np.take_along_axis(next_bl, batch.question_at_bk, axis=1) == answers_bk
    assert followed.mean() == pytest.approx(1 / 120, abs=0.003)


def test_every_even_distance_is_drawn_and_small_power_prefers_short_ones() -> None:
    spec = MqarSpec(pairs=1, length=42, power=0.01)
    slots = (generate_mqar(spec, 20_000, np.random.default_rng(1)).question_at_bk[:, 0] - 2) // 2
    weight = np.arange(1, 21) ** (spec.power - 1.0)
    expected = weight / weight.sum()
    frequency = np.bincount(slots, minlength=20) / 20_000
    assert np.abs(frequency - expected).max() < 0.015


def test_generation_is_determined_by_the_generator() -> None:
    first = generate_mqar(MqarSpec(), 7, np.random.default_rng(3))
    again = generate_mqar(MqarSpec(), 7, np.random.default_rng(3))
    other = generate_mqar(MqarSpec(), 7, np.random.default_rng(4))
    assert np.array_equal(first.inputs_bl, again.inputs_bl)
    assert not np.array_equal(first.inputs_bl, other.inputs_bl)


@pytest.mark.parametrize(
    ("fields", "key", "message"),
    [
        ({"symbols": 127}, "symbols", "expected an even number"),
        ({"length": 31}, "length", "at least 4 \\* pairs = 32"),
        ({"pairs": 9, "length": 64}, "pairs", "at most 8 pairs, or min_symbols_per_pair: 14"),
        ({"symbols": 64}, "symbols", "at most 4 pairs"),
        ({"symbols": 130}, "symbols", "less than or equal to 128"),
        ({"pairs": 0}, "pairs", "greater than 0"),
        ({"power": float("nan")}, "power", "finite"),
    ],
)
def test_impossible_tasks_are_refused(fields: dict[str, float], key: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as caught:
        MqarSpec(**fields)  # type: ignore[arg-type]
    assert caught.value.errors()[0]["loc"] == (key,)
