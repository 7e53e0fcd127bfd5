"""Local text by path: .txt, .jsonl and .parquet files, folders (read recursively) and globs.

A .jsonl line or a .parquet row is a document. A .txt file is cut at blank lines into documents of at least
MIN_PASSAGE bytes, so that one long book can be split as well. Each document's hash decides its split.
"""

import glob
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from archsearch.data.spec import TextSpec
from archsearch.data.splitting import (
    SPLITS,
    TRAIN_SHARE,
    VALIDATION_SHARE,
    check_split,
    content_key,
    hash_fraction,
    join_documents,
)

SUFFIXES = (".jsonl", ".parquet", ".txt")
MIN_PASSAGE = 2048

_Fingerprint = tuple[tuple[str, int, int], ...]


def load_text(spec: TextSpec, split: str) -> npt.NDArray[np.uint8]:
    """Token ids of a split of local text, uint8 (tokens,); END_OF_DOCUMENT ends each document.

    Kept in memory until a file changes (by path, modification time and size). Raises ValueError where the
    path, a file or the field cannot be read.
    """
    check_split(split)
    fingerprint = tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in find_files(spec.path))
    return _load(fingerprint, spec.field)[SPLITS.index(split)]


def find_files(path: str) -> list[Path]:
    """The readable files that `path` (a file, a folder or a glob) stands for, in a fixed order."""
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix not in SUFFIXES:
            raise ValueError(
                f"{path}: cannot read {place.suffix or 'a file without a suffix'}; {_expected()}"
            )
        return [place]
    if place.is_dir():
        found = [p for p in sorted(place.rglob("*")) if p.suffix in SUFFIXES and p.is_file()]
    elif glob.has_magic(path):
        matches = sorted(map(Path, glob.glob(str(place), recursive=True)))
        found = [p for p in matches if p.suffix in SUFFIXES and p.is_file()]
    else:
        raise ValueError(f"{path}: no such file or folder (looked from {Path.cwd()})")
    if not found:
        raise ValueError(f"{path}: no readable files there; {_expected()}")
    return found


@lru_cache(maxsize=8)
def _load(fingerprint: _Fingerprint, field: str) -> tuple[npt.NDArray[np.uint8], ...]:
    paths = [Path(path) for path, _, _ in fingerprint]
    documents = [text for path in paths for text in _documents(path, field) if text.strip()]
    arrays = []
    for chosen in _assign(documents, where=", ".join(map(str, paths[:3]))):
        arrays.append(np.frombuffer(join_documents(chosen), dtype=np.uint8))
    return tuple(arrays)


def _assign(documents: list[str], where: str) -> tuple[list[str], ...]:
    """Documents by split, in the order read; copies of a document follow it into its split.

    Where chance left a held-out split empty (few documents), it takes the training document whose hash comes
    nearest, so that small corpora can be scored too.
    """
    fractions = {key: hash_fraction(key) for key in map(content_key, documents)}
    if len(fractions) < len(SPLITS):
        raise ValueError(
            f"{where}: {len(fractions)} distinct documents; expected at least {len(SPLITS)}, one a split"
        )
    ranked = sorted(fractions, key=fractions.__getitem__)
    test_from = _first_from(ranked, fractions, TRAIN_SHARE + VALIDATION_SHARE)
    test_from = max(2, min(test_from, len(ranked) - 1))
    validation_from = max(1, min(_first_from(ranked, fractions, TRAIN_SHARE), test_from - 1))
    split_index = {key: (rank >= validation_from) + (rank >= test_from) for rank, key in enumerate(ranked)}
    chosen: tuple[list[str], ...] = ([], [], [])
    for document in documents:
        chosen[split_index[content_key(document)]].append(document)
    return chosen


def _first_from(ranked: list[bytes], fractions: dict[bytes, float], bound: float) -> int:
    return next((rank for rank, key in enumerate(ranked) if fractions[key] >= bound), len(ranked))


def _documents(path: Path, field: str) -> Iterator[str]:
    if path.suffix == ".parquet":
        return _parquet_documents(path, field)
    text = _read_utf8(path)
    return _jsonl_documents(path, text, field) if path.suffix == ".jsonl" else _passages(text)


def _read_utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from None


def _passages(text: str) -> Iterator[str]:
    passage: list[str] = []
    size = 0
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        passage.append(paragraph)
        size += len(paragraph)
        if size >= MIN_PASSAGE:
            yield "\n\n".join(passage).strip("\n")
            passage, size = [], 0
    yield "\n\n".join(passage).strip("\n")


def _jsonl_documents(path: Path, text: str, field: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}:{number}: found {type(row).__name__}; expected an object with {field!r}"
            )
        if field not in row:
            raise ValueError(
                f"{path}:{number}: no field {field!r}; found {', '.join(map(repr, row)) or 'none'}"
            )
        if not isinstance(row[field], str):
            raise ValueError(f"{path}:{number}: {field!r} is {type(row[field]).__name__}; expected a string")
        yield row[field]


def _parquet_documents(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None
    with file:
        schema = file.schema_arrow
        if field not in schema.names:
            raise ValueError(f"{path}: no column {field!r}; found {', '.join(map(repr, schema.names))}")
        found = schema.field(field).type
        if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
            raise ValueError(f"{path}: column {field!r} is {found}; expected string")
        for batch in file.iter_batches(columns=[field]):
            yield from (value for value in batch.column(0).to_pylist() if value is not None)


def _expected() -> str:
    return f"expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
