"""Wrong files: each ends in one line that says where and what.

A file's first line is `# expect LINE: PHRASE`. Files named experiment_* are experiments,
the rest model specs.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from archsearch.experiment import load_experiment
from archsearch.spec import SpecError, load_spec
from archsearch.spec.errors import dotted, nearest

FILES = sorted((Path(__file__).parent / "malformed").iterdir())
EXPECT = re.compile(r"# expect (\d+): (.*)")


def expected(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    text = data.decode("utf-16") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else data.decode("latin-1")
    match = EXPECT.match(text)
    assert match is not None, f"{path.name} does not begin with what is expected of it"
    return int(match[1]), match[2]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_says_where_and_what(path: Path) -> None:
    line, phrase = expected(path)
    load = load_experiment if path.stem.startswith("experiment_") else load_spec
    with pytest.raises(SpecError) as caught:
        load(path)
    text = str(caught.value)
    assert phrase
    assert phrase in text
    found = re.fullmatch(re.escape(str(path)) + r":(\d+):(\d+): ([\w.-]*): (.+)", text)
    assert found is not None, f"not `file:line:col: path: message` on one line: {text!r}"
    assert int(found[1]) == line
    assert len(text) - len(str(path)) < 500
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_experiment_reader_refuses_it_too(path: Path) -> None:
    with pytest.raises(SpecError, match=r":\d+:\d+: "):
        load_experiment(path)


def test_there_are_many() -> None:
    assert len(FILES) >= 100


def test_names_that_would_break_a_line_are_shown_as_python_writes_them() -> None:
    assert nearest("mqar", ["code", "a\nb"]) == "; expected one of: 'a\\nb', code"
    assert dotted(("data", "a\tb", 0)) == "data.'a\\tb'.0"
