import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.data.random_streams import named_generator
from archsearch.data.sources import TextSource, open_source
from archsearch.data.spec import BUILT_IN

TOKENS = np.arange(250, dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32), st.integers(0, 5))
def test_an_epoch_shows_each_token_at_most_once(length: int, seed: int, epoch: int) -> None:
    source = TextSource("x", TOKENS, length, seed)
    inputs_bl, targets_bl = source.sequences(epoch * source.windows_per_epoch, source.windows_per_epoch)
    shown = inputs_bl.ravel()
    assert len(np.unique(shown)) == len(shown) > len(TOKENS) - 2 * length
    assert np.array_equal(targets_bl, inputs_bl + 1)
    assert source.epochs(3 * source.windows_per_epoch) == 3


def test_epochs_differ_in_order_and_offset() -> None:
    source = TextSource("x", TOKENS, 20, seed=0)
    starts = [
        source.sequences(e * source.windows_per_epoch, source.windows_per_epoch)[0][:, 0] for e in range(8)
    ]
    assert len({int(start[0]) for start in starts}) > 4
    assert len({int(start.min()) % 20 for start in starts}) > 4


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_sequences_do_not_depend_on_how_they_are_asked_for(name: str) -> None:
    source = open_source(name, BUILT_IN[name], context=128, seed=3)
    inputs_bl, targets_bl = source.sequences(250, 20)
    assert inputs_bl.shape == targets_bl.shape == (20, source.length)
    assert inputs_bl.dtype == targets_bl.dtype == np.int64
    fresh = open_source(name, BUILT_IN[name], context=128, seed=3)
    for row in (19, 0, 7):
        one_input, one_target = fresh.sequences(250 + row, 1)
        assert np.array_equal(one_input[0], inputs_bl[row])
        assert np.array_equal(one_target[0], targets_bl[row])
    assert source.sequences(250, 0)[0].shape == (0, source.length)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_seed_and_split_change_the_sequences(name: str) -> None:
    def first(seed: int, split: str) -> bytes:
        return (
            open_source(name, BUILT_IN[name], context=128, seed=seed, split=split)
            .sequences(0, 4)[0]
            .tobytes()
        )

    assert len({first(0, "train"), first(1, "train"), first(0, "validation")}) == 3


def test_generated_sources_never_repeat() -> None:
    for name in ("mqar", "facts", "paraphrases"):
        source = open_source(name, BUILT_IN[name], context=128, seed=0)
        inputs_bl, _ = source.sequences(0, 600)
        assert len(np.unique(inputs_bl, axis=0)) == 600
        assert source.epochs(600) == 0


def test_text_too_short_for_a_window_is_refused() -> None:
    with pytest.raises(
        ValueError, match="source 'x': 250 tokens are too few for windows of 126; expected at least 252"
    ):
        TextSource("x", TOKENS, 126, seed=0)


def test_streams_are_told_apart_by_types_and_borders() -> None:
    names: list[tuple[str | int, ...]] = [("a", 12), ("a1", 2), ("a", "12"), ("a", 1, 2), ("a", 12, 0)]
    assert len({named_generator(*name).integers(2**62) for name in names}) == len(names)
    assert named_generator("a", 12).integers(2**62) == named_generator("a", 12).integers(2**62)
