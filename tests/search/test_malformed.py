"""Search spaces that a person got wrong: one line each, at the right place, saying what was expected."""

import re
from pathlib import Path

import pytest

from archsearch.search.space import load_space
from archsearch.spec import SpecError

FILES = sorted((Path(__file__).parent / "malformed").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_line_at_the_right_place(path: Path) -> None:
    """Each file's first line says which line is wrong and a phrase of the message."""
    expected = re.fullmatch(r"# expect: (\d+): (.+)", path.read_text().splitlines()[0])
    assert expected is not None
    with pytest.raises(SpecError) as caught:
        load_space(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}:{expected[1]}:"), text
    assert expected[2] in text


def test_there_are_enough() -> None:
    assert len(FILES) >= 40


def test_a_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_space(tmp_path / "none.yaml")
