"""The byte tokenizer: UTF-8 bytes are the ids, so text of any language encodes without a learned table."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from archsearch.spec.errors import nearest
from archsearch.spec.vocabulary import BYTES, TOKENIZERS


class ByteTokenizer:
    """Maps text to its UTF-8 bytes (ids 0..255); ids from 256 up are recall symbols that no text contains."""

    def __init__(self, vocab_size: int = TOKENIZERS["bytes"]) -> None:
        if vocab_size < BYTES:
            raise ValueError(f"vocab_size: {vocab_size} is too small for bytes; expected at least {BYTES}")
        self.vocab_size = vocab_size

    def encode(self, text: str) -> npt.NDArray[np.uint16]:
        """The UTF-8 bytes of `text`, shape (bytes,). Raises UnicodeEncodeError for lone surrogates."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Iterable[int] | npt.NDArray[np.integer]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD, recall symbol n (id 256 + n) becomes ⟨n⟩."""
        ids_l = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if ids_l.size and (ids_l.min() < 0 or ids_l.max() >= self.vocab_size):
            raise ValueError(
                f"ids: found {ids_l.min()}..{ids_l.max()}; expected ids within 0..{self.vocab_size - 1}"
            )
        symbol_at = np.flatnonzero(ids_l >= BYTES)
        pieces, start = [], 0
        for at in symbol_at.tolist():
            pieces += [_text(ids_l[start:at]), f"⟨{ids_l[at] - BYTES}⟩"]
            start = at + 1
        pieces.append(_text(ids_l[start:]))
        return "".join(pieces)


def get_tokenizer(name: str) -> ByteTokenizer:
    """The tokenizer that specs call `name`. Raises ValueError with the nearest known name."""
    if name not in TOKENIZERS:
        raise ValueError(f"tokenizer: unknown name {name!r}{nearest(name, TOKENIZERS)}")
    return ByteTokenizer(TOKENIZERS[name])


def _text(ids_l: npt.NDArray[np.int64]) -> str:
    return ids_l.astype(np.uint8).tobytes().decode("utf-8", errors="replace")
