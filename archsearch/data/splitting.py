"""Which split a document belongs to, and how documents become one stream of tokens."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from archsearch.spec.errors import nearest
from archsearch.spec.vocabulary import END_OF_DOCUMENT

SPLITS = ("train", "validation", "test")
TRAIN_SHARE = 0.90
VALIDATION_SHARE = 0.05


class Document(NamedTuple):
    """One text and the module (or other unit) that must not be spread over several splits."""

    module: str
    text: str


def check_split(split: str) -> None:
    """Raises ValueError with the nearest known name unless `split` is train, validation or test."""
    if split not in SPLITS:
        raise ValueError(f"split: unknown name {split!r}{nearest(split, SPLITS)}")


def hash_fraction(key: str | bytes) -> float:
    """A number in [0, 1) that depends on `key` alone, the same in every process and version."""
    data = key.encode() if isinstance(key, str) else key
    return int.from_bytes(hashlib.sha256(data).digest()[:7], "big") / (1 << 56)


def split_of(key: str | bytes) -> str:
    """90 % of keys train, 5 % validate, 5 % test."""
    fraction = hash_fraction(key)
    if fraction < TRAIN_SHARE:
        return "train"
    return "validation" if fraction < TRAIN_SHARE + VALIDATION_SHARE else "test"


def content_key(text: str) -> bytes:
    """Equal for texts that differ in white space only."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).digest()


def join_documents(texts: Sequence[str]) -> bytes:
    """UTF-8 of the texts, each ended by END_OF_DOCUMENT; NUL within a text, that very byte, is dropped."""
    end = bytes([END_OF_DOCUMENT])
    return b"".join(text.encode("utf-8", "replace").replace(end, b"") + end for text in texts)
