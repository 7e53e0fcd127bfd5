"""Search spaces that a person got wrong: one line each, at the right place, saying what was expected; and
nothing that they name is run, made or waited for."""

import copy
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.search.space import load_space
from archsearch.spec import SpecError, to_yaml
from archsearch.spec.source import Source

SPACES = Path(__file__).parent / "spaces"
GOOD = ("halving.yaml", "hybrid.yaml", "tiny.yaml")
FILES = sorted((Path(__file__).parent / "malformed").glob("*.yaml"))

SWEEP_EACH = """
import contextlib, io, json, os, pathlib, sys
from archsearch.cli import main

for path in sys.stdin.read().split():
    told, shown = io.StringIO(), io.StringIO()
    sys.argv = ["archsearch", "sweep", path]
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(shown):
        try:
            main()
        except SystemExit as end:
            code = end.code
    loaded = sorted({"torch", "ray", "optuna"} & sys.modules.keys())
    made = os.listdir()
    line = {"path": path, "code": code, "err": told.getvalue(), "out": shown.getvalue()}
    print(json.dumps(line | {"loaded": loaded, "made": made}))
"""
"""`archsearch sweep` of every file, in one process that has nothing else to load or to make."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found = subprocess.run(
        [sys.executable, "-c", SWEEP_EACH],
        input="\n".join(map(str, FILES)),
        cwd=tmp_path_factory.mktemp("empty"),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    return {Path(line["path"]).stem: line for line in lines}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_one_line_at_the_right_place_and_nothing_else(path: Path, swept: dict[str, dict[str, Any]]) -> None:
    """Each file's first line says which line is wrong and a phrase of the message."""
    expected = re.fullmatch(r"# expect: (\d+): (.+)", path.read_text().splitlines()[0])
    assert expected is not None
    found = swept[path.stem]
    assert (found["code"], found["out"], found["err"].count("\n")) == (2, "", 1)
    assert re.match(rf"{re.escape(str(path))}:{expected[1]}:\d+: ", found["err"]), found["err"]
    assert expected[2] in found["err"]
    assert (found["loaded"], found["made"]) == ([], [])


def test_there_are_enough() -> None:
    assert len(FILES) >= 130


@pytest.mark.parametrize("name", ["code_constraint", "tag_object", "sampler_list"])
@pytest.mark.parametrize("command", ["sweep", "validate", "ask"])
def test_every_command_refuses_alike(command: str, name: str, tmp_path: Path) -> None:
    path = Path(__file__).parent / "malformed" / f"{name}.yaml"
    found = subprocess.run(
        [sys.executable, "-m", "archsearch", command, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    assert found.stderr.startswith(f"{path}:6:")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("constraints: ['params" + " " * 50_000 + "']", "expected a cost, an operator and a limit"),
        ("training: {tokens: '1" + " " * 50_000 + "?'}", "expected a number such as 4M"),
        ("constraints: ['" + "a" * 50_000 + "']", "expected a cost, an operator and a limit"),
        ("constraints: ['" + "<" * 50_000 + "']", "expected a cost, an operator and a limit"),
        ("name: " + "n" * 50_000, "at most 200"),
        ("evaluation: {domains: [" + "{$choice: [reference, code]}," * 5000 + "]}", "at most 4,096 entries"),
    ],
    ids=["blanks", "blanks in a number", "word", "operators", "name", "list"],
)
def test_endless_text_is_read_at_once(text: str, message: str, tmp_path: Path) -> None:
    """In time that grows with its length, not with the square of it; and not repeated at that length."""
    path = tmp_path / "space.yaml"
    path.write_text(f"arch: {{tokenizer: bytes, d_model: 32, layers: [mlp]}}\n{text}\n")
    with pytest.raises(SpecError, match=message) as caught:
        load_space(path)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file"):
        load_space(tmp_path / "none.yaml")


ODD = [None, True, -1, 0, 3.5, 10**30, float("nan"), "", "x", "mlp", "$choice", "4M", [], {}, [[]], ["mlp"]]
ODD += [{"mlp": None}, {"$choice": []}, {"$choice": ["mlp", 2]}, {"$int": [1, 3]}, {"$log": [0.001, 1]}]
ODD += [{"$simplex": ["code", "mqar"]}, {"$stack": {"depth": 2, "of": ["mlp"]}}, {"by": "d_model"}, "a\nb"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@settings(max_examples=60)
@given(st.data())
def test_whatever_stands_in_it_is_taken_or_refused(data: st.DataObject) -> None:
    """Some values of a good space are replaced by others: no exception but the one that says where."""
    value = copy.deepcopy(Source.read(SPACES / data.draw(st.sampled_from(GOOD))).value)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(list(places(value))))
        holder = value
        for key in path:
            holder = holder[key]
        holder[last] = copy.deepcopy(data.draw(st.sampled_from(ODD)))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(to_yaml(value))
        file.flush()
        try:
            load_space(file.name)
            return
        except SpecError as error:
            told = str(error)
    assert re.fullmatch(rf"{re.escape(file.name)}:\d+:\d+: .*", told), told
