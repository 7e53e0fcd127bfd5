"""The library compiles to what it compiled to; `python tests/golden/dumps.py` accepts a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden.dumps import FOLDER, LIBRARY, dump


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_compiles_to_what_it_did(path: Path) -> None:
    assert dump(path) == (FOLDER / f"{path.stem}.txt").read_text()


def test_every_dump_has_its_spec() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {path.stem for path in LIBRARY}
