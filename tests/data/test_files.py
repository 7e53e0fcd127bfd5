import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from archsearch.data.files import load_text
from archsearch.data.spec import TextSpec
from archsearch.data.splitting import SPLITS

TEXTS = [f"Document {i}:" + " words" * (i % 7) for i in range(300)]


def write_jsonl(folder: Path) -> TextSpec:
    (folder / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n\n" for t in TEXTS))
    return TextSpec(path=str(folder / "a.jsonl"), field="body")


def write_parquet(folder: Path) -> TextSpec:
    pq.write_table(pa.table({"n": range(301), "body": [*TEXTS, None]}), folder / "a.parquet")
    return TextSpec(path=str(folder / "a.parquet"), field="body")


def write_folder(folder: Path) -> TextSpec:
    (folder / "sub").mkdir()
    for i, text in enumerate(TEXTS):
        (folder / ("sub" if i % 2 else ".") / f"{i:03}.txt").write_text(text)
    (folder / "ignored.bin").write_bytes(b"\xff")
    return TextSpec(path=str(folder))


def write_glob(folder: Path) -> TextSpec:
    write_folder(folder)
    return TextSpec(path=str(folder / "**" / "*.txt"))


def read(spec: TextSpec) -> dict[str, list[str]]:
    return {split: load_text(spec, split).tobytes().decode().split("\0")[:-1] for split in SPLITS}


@pytest.mark.parametrize("write", [write_jsonl, write_parquet, write_folder, write_glob])
def test_every_format_gives_the_same_documents_and_splits(
    write: Callable[[Path], TextSpec], tmp_path: Path
) -> None:
    (tmp_path / "reference").mkdir()
    found = read(write(tmp_path))
    expected = read(write_jsonl(tmp_path / "reference"))
    assert {s: sorted(texts) for s, texts in found.items()} == {s: sorted(t) for s, t in expected.items()}
    assert sorted(text for texts in found.values() for text in texts) == sorted(TEXTS)
    assert len(found["train"]) > 240
    assert min(len(found["validation"]), len(found["test"])) >= 5


def test_a_book_is_cut_at_blank_lines_so_that_it_can_be_split(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} " + "of the book " * 30 for i in range(120)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    found = read(TextSpec(path=str(tmp_path / "book.txt")))
    assert all(found.values())
    kept = [p for texts in found.values() for text in texts for p in text.split("\n\n")]
    assert sorted(kept) == sorted(paragraphs)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_few_documents_still_fill_every_split(count: int, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(count)))
    found = read(TextSpec(path=str(tmp_path / "a.jsonl")))
    assert all(found.values())
    assert sum(map(len, found.values())) == count


def test_copies_of_a_document_stay_in_one_split(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS[:50] * 2]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = read(TextSpec(path=str(tmp_path / "a.jsonl")))
    assert sum(map(len, found.values())) == 100
    for split in SPLITS:
        others = {text for other in SPLITS if other != split for text in found[other]}
        assert not others.intersection(found[split])


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    spec = write_jsonl(tmp_path)
    before = load_text(spec, "train")
    assert load_text(spec, "train") is before
    path = Path(spec.path)
    path.write_text(path.read_text() + json.dumps({"body": "one more document"}) + "\n")
    os.utime(path, ns=(1, 1))
    after = b"".join(load_text(spec, split).tobytes() for split in SPLITS)
    assert b"one more document\0" in after


def test_nul_within_a_text_does_not_end_a_document(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"a\0b {i}"}) for i in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    found = read(TextSpec(path=str(tmp_path / "a.jsonl")))
    assert sorted(t for texts in found.values() for t in texts) == [f"ab {i}" for i in range(9)]


BROKEN = {
    "missing.txt": (None, r"missing\.txt: no such file or folder"),
    "*.jsonl": (None, r"\*\.jsonl: no readable files there; expected \.jsonl, \.parquet or \.txt"),
    "a.csv": (b"x", r"a\.csv: cannot read \.csv; expected"),
    "a.txt": (b"fine\n\xff", r"a\.txt:2: not UTF-8: byte 0xff at offset 5"),
    "few.txt": (b"short", r"few\.txt: 1 distinct documents; expected at least 3"),
    "a.jsonl": (b'{"text": "x"}\n\n{"body": 1}\n', r"a\.jsonl:3: no field 'text'; found 'body'"),
    "b.jsonl": (b'{"text": "x"}\n{"text": ', r"b\.jsonl:2: not JSON"),
    "c.jsonl": (b'{"text": 3}', r"c\.jsonl:1: 'text' is int; expected a string"),
    "d.jsonl": (b"[1]", r"d\.jsonl:1: found list; expected an object with 'text'"),
    "a.parquet": (b"PAR0", r"a\.parquet: not a Parquet file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_mistakes_are_named_with_their_place(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_text(TextSpec(path=str(tmp_path / name)), "train")


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": [1, 2], "body": ["x", "y"]}), path)
    with pytest.raises(ValueError, match="no column 'text'; found 'n', 'body'"):
        load_text(TextSpec(path=str(path)), "train")
    with pytest.raises(ValueError, match="column 'n' is int64; expected string"):
        load_text(TextSpec(path=str(path), field="n"), "train")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no readable files there"):
        load_text(TextSpec(path=str(tmp_path)), "train")
