import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.ui import theme
from archsearch.ui.glyphs import kinds, layout_text, legend

from .fakes import LAYOUTS, A, F, M, W, parallel

LAYERS = st.sampled_from([M, A, W, F])
LAYOUT = st.recursive(
    st.lists(LAYERS, min_size=1, max_size=6),
    lambda inner: st.lists(
        LAYERS | st.builds(lambda branches, merge: parallel(*branches, merge=merge),
                           st.lists(inner, min_size=2, max_size=3), st.sampled_from(["mean", "gate", "odd"])),
        min_size=1, max_size=4),
    max_leaves=12,
)  # fmt: skip


def unfold(drawn: str) -> str:
    """Write `(stretch)×3` and `M×3` out again."""
    while "×" in drawn:
        end = drawn.index("×")
        times = re.match(r"\d+", drawn[end + 1 :])
        assert times
        start, depth = end - 1, 0
        if drawn[start] in theme.MERGES.values() or drawn[start] == "°":
            start -= 1
        if drawn[start] == ")":
            for position in range(start, -1, -1):
                depth += {")": 1, "(": -1}.get(drawn[position], 0)
                if depth == 0:
                    start = position
                    break
        stretch = drawn[start:end]
        if stretch.endswith(")"):
            stretch = stretch[1:-1]
        drawn = drawn[:start] + stretch * int(times.group()) + drawn[end + 1 + len(times.group()) :]
    return drawn


@pytest.mark.parametrize(
    ("layout", "drawn"),
    [
        ([M, F, A, F], "M-A-"),
        ([M, W], "Ma"),
        ([parallel([M], [A])], "(M│A)ᵐ"),
        ([parallel([M, F], [parallel([A], [W], merge="cross_attention")], merge="concat")], "(M-│(A│a)ˣ)ᶜ"),
        ([parallel([M], [A], merge="new")], "(M│A)°"),
        ([{"glyph": "*", "kind": "attention", "family": "attention", "window": 8}], "w"),
        ([{}], "?"),
        ([], ""),
    ],
)
def test_drawn_in_full(layout, drawn):
    assert layout_text(layout).plain == drawn


@pytest.mark.parametrize(
    ("layout", "width", "drawn"),
    [
        ([M, A, F] * 4, 8, "(MA-)×4"),
        ([M] * 9, 4, "M×9"),
        ([M, A] * 5 + [F], 8, "(MA)×5-"),
        ([parallel([M] * 6, [A])] * 3, 14, "(M×6│A)ᵐ×3"),
        ([M, A, F, W], 3, "…+4"),
        ([M, A, F, W, M, M, A], 5, "MA…+5"),
        ([parallel([M, A, M], [A, F, W])], 8, "(MAM│…+3"),
    ],
)
def test_drawn_short(layout, width, drawn):
    assert layout_text(layout, width).plain == drawn


@given(LAYOUT, st.integers(4, 40))
def test_fits_and_tells_the_truth(layout, width):
    drawn = layout_text(layout, width)
    full = layout_text(layout).plain
    assert drawn.cell_len <= width
    if "…" in drawn.plain:
        shown, left = drawn.plain.split("…")
        hidden = int(left[1:]) if left else None
        assert full.startswith(unfold(shown)) or hidden
        glyphs = sum(char in "MAa-" for char in unfold(shown))
        if hidden is not None:
            assert glyphs + hidden == len(list(theme.leaves(layout)))
    else:
        assert unfold(drawn.plain) == full


def test_every_family_has_its_colour():
    styles = {str(span.style) for span in layout_text([M, A, W, F]).spans}
    assert len(styles) == 4


def test_the_legend_names_what_is_drawn():
    told = " ".join(entry.plain for entry in legend(LAYOUTS))
    for words in ("M mamba2", "A attention", "a windowed attention", "- mlp", "(│)ˣ cross attention"):
        assert words in told
    assert [glyph for glyph, _, _ in kinds([[M, M, A]])] == ["M", "A"]


def test_terminal_codes_in_a_glyph_are_not_passed_on():
    layer = {"glyph": "\x1b[2J", "kind": "evil", "family": "other"}
    assert "\x1b" not in layout_text([layer]).plain


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ([M, F], "ssm only"),
        ([A, W], "attention only"),
        ([M, A], "sequential hybrid"),
        ([parallel([M], [M]), A], "sequential hybrid"),
        ([M, parallel([M], [F, parallel([A], [F])])], "parallel hybrid"),
        ([F], "other"),
    ],
)
def test_composition(layout, name):
    assert theme.composition(layout) == name


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_reads_on_black_and_on_white():
    colours = {shade for shades in theme.FAMILIES.values() for shade in shades}
    colours |= {*theme.SOURCES, *theme.COMPOSITIONS.values(), theme.GOLD, theme.GOOD, theme.BAD, theme.QUIET}
    wrong = {colour: luminance(colour) for colour in colours if not 0.1 <= luminance(colour) <= 0.3}
    assert wrong == {}
