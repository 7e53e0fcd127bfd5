import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.study.fronts import hypervolume
from archsearch.study.volume import VolumeHistory

WAYS = ["maximize", "minimize", "maximize"]
VALUES = st.integers(-3, 4).map(float)


@st.composite
def courses(draw):
    """Points in the order in which they come, ties and copies among them; reference and directions."""
    d = draw(st.integers(1, 3))
    points = draw(st.lists(st.lists(VALUES, min_size=d, max_size=d), max_size=12))
    return points, draw(st.lists(VALUES, min_size=d, max_size=d)), WAYS[:d]


def from_scratch(points, reference, directions):
    return [hypervolume(np.array(points[:n]), reference, directions) for n in range(1, len(points) + 1)]


@given(courses(), st.lists(st.integers(0, 12)))
def test_looking_often_shows_what_looking_once_does(case, looks):
    points, reference, directions = case
    history = VolumeHistory()
    for upto in [*looks, len(points)]:
        seen = history.after(points[:upto], reference, directions)
        assert seen == pytest.approx(from_scratch(points[:upto], reference, directions))


@given(courses(), courses())
def test_other_points_and_another_reference_begin_anew(case, other):
    history = VolumeHistory()
    for points, reference, directions in (case, other, case):
        seen = history.after(points, reference, directions)
        assert seen == pytest.approx(from_scratch(points, reference, directions))
