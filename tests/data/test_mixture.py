from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from archsearch.data.mixture import MixtureStream, StepBatch, quota_schedule
from archsearch.data.spec import DataSpec

ALL = DataSpec(mixture={"reference": 0.3, "code": 0.1, "mqar": 0.3, "facts": 0.2, "paraphrases": 0.1})

weight_lists = st.lists(
    st.one_of(st.just(0.0), st.floats(1e-12, 1e-3), st.floats(1e-3, 1.0), st.integers(1, 9).map(float)),
    min_size=1,
    max_size=8,
)


def same(one: StepBatch, other: StepBatch) -> bool:
    return len(one.groups) == len(other.groups) and all(
        a.source == b.source
        and a.weight == b.weight
        and np.array_equal(a.inputs_bl, b.inputs_bl)
        and np.array_equal(a.targets_bl, b.targets_bl)
        for a, b in zip(one.groups, other.groups, strict=True)
    )


@settings(max_examples=150, deadline=None)
@given(weight_lists)
def test_every_prefix_stays_within_one_slot_of_its_share(weights: list[float]) -> None:
    assume(sum(weights) > 0)
    total = sum(map(Fraction, weights))
    shares = [Fraction(weight) / total for weight in weights]
    counts = [0] * len(weights)
    for slots, chosen in enumerate(islice(quota_schedule([float(share) for share in shares]), 400), start=1):
        counts[chosen] += 1
        assert all(abs(count - share * slots) <= 1 for count, share in zip(counts, shares, strict=True))
    assert all(count == 0 for count, weight in zip(counts, weights, strict=True) if weight == 0)


def test_quota_holds_where_the_largest_deficit_breaks_it() -> None:
    shares = np.array([1, 1, 1, 1, 1, 1, 36, 54]) / 96

    def worst(chosen: list[int]) -> float:
        counts_tk = np.cumsum(np.array(chosen)[:, None] == np.arange(len(shares)), axis=0)
        return float(np.abs(counts_tk - shares * np.arange(1, len(chosen) + 1)[:, None]).max())

    greedy: list[int] = []
    counts = np.zeros(len(shares))
    for slots in range(1, 193):
        greedy.append(int(np.argmax(shares * slots - counts)))
        counts[greedy[-1]] += 1
    assert worst(greedy) > 1.1
    assert worst(list(islice(quota_schedule(shares.tolist()), 192))) <= 1 - 1 / 14


def test_tokens_follow_the_mixture_at_every_step() -> None:
    stream = MixtureStream(ALL, context=128, tokens_per_step=1024, seed=0)
    seen = dict.fromkeys(ALL.mixture, 0)
    for step in range(40):
        assert stream.counts(step) == seen
        batch = stream.at(step)
        assert batch.tokens == sum(group.inputs_bl.size for group in batch.groups) == 1024
        assert sum(group.weight for group in batch.groups) == pytest.approx(1)
        for group in batch.groups:
            assert group.inputs_bl.shape == group.targets_bl.shape
            assert group.weight == group.inputs_bl.size / 1024
            assert (group.targets_bl >= 0).any(axis=1).all()
            seen[group.source] += group.inputs_bl.size
        for name, weight in ALL.weights.items():
            assert abs(seen[name] - weight * 1024 * (step + 1)) <= 128


def test_a_resumed_stream_goes_on_with_the_same_data() -> None:
    through = MixtureStream(ALL, context=128, tokens_per_step=640, seed=5)
    batches = [through.at(step) for step in range(30)]
    resumed = MixtureStream(ALL, context=128, tokens_per_step=640, seed=5)
    assert all(same(resumed.at(step), batches[step]) for step in (29, 12, 13, 0))
    assert resumed.counts(30) == through.counts(30)


def test_no_sequence_is_given_twice_by_consecutive_steps() -> None:
    spec = DataSpec(mixture={"mqar": 1, "facts": 1, "code": 1})
    stream = MixtureStream(spec, context=128, tokens_per_step=384, seed=0)
    rows = [
        row.tobytes() for step in range(60) for group in stream.at(step).groups for row in group.inputs_bl
    ]
    assert len(set(rows)) == len(rows)


def test_seeds_differ() -> None:
    streams = [MixtureStream(ALL, context=128, tokens_per_step=640, seed=seed) for seed in (0, 1)]
    assert not same(streams[0].at(0), streams[1].at(0))


def test_zero_weight_sources_are_never_seen_nor_opened() -> None:
    spec = DataSpec.model_validate(
        {"mixture": {"mqar": 1, "gone": 0}, "sources": {"gone": {"text": {"path": "does/not/exist.txt"}}}}
    )
    stream = MixtureStream(spec, context=64, tokens_per_step=64, seed=0)
    assert {group.source for step in range(50) for group in stream.at(step).groups} == {"mqar"}
    assert stream.counts(50) == {"mqar": 50 * 64}


def test_epochs_count_passes_through_text() -> None:
    stream = MixtureStream(
        DataSpec(mixture={"reference": 1, "mqar": 1}), context=128, tokens_per_step=2048, seed=0
    )
    epochs = stream.epochs(100)
    assert epochs["mqar"] == 0
    assert 0 < epochs["reference"] < 1
    assert epochs["reference"] == pytest.approx(stream.epochs(50)["reference"] * 2)


def test_impossible_streams_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"mixture\.mqar: sequences of 32 tokens do not divide the context of 100"
    ):
        MixtureStream(ALL, context=100, tokens_per_step=1000, seed=0)
    with pytest.raises(
        ValueError, match="tokens_per_step: 1000 is not a positive multiple of the context, 128"
    ):
        MixtureStream(ALL, context=128, tokens_per_step=1000, seed=0)
    with pytest.raises(ValueError, match="step: -1"):
        MixtureStream(ALL, context=128, tokens_per_step=128, seed=0).at(-1)
