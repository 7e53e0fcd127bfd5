"""Two models of bytes that are fitted by counting: what a language model must beat to have learned much."""

from __future__ import annotations

import lzma
import math

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def xz_bits_per_byte(data: Bytes) -> float:
    """Size of `xz -9` of the bytes, in bits a byte."""
    packed = lzma.compress(data.tobytes(), preset=9)
    return 8 * len(packed) / len(data)


def trigram_bits_per_byte(train: Bytes, test: Bytes) -> float:
    """Cross-entropy of an interpolated byte trigram model, in bits a byte.

    Witten-Bell backoff (Witten and Bell 1991): p(c | ab) mixes the trigram's counts with p(c | b), that with
    p(c), that with the uniform 1/256; a context seen n times with t different continuations gives the
    lower order the weight t / (n + t).
    """
    probability = np.full(len(test) - 2, 1 / 256)
    for order in (0, 1, 2):
        probability = _with_order(train, test, order, probability)
    return float(-np.log(probability).mean() / math.log(2))


def _with_order(train: Bytes, test: Bytes, order: int, lower: npt.NDArray) -> npt.NDArray:
    """Probabilities of test[2:] with contexts of `order` bytes, backing off to `lower`."""
    contexts, following = _contexts(train, order), train[order:].astype(np.int64)
    size = 256**order
    counts = np.bincount(contexts * 256 + following, minlength=size * 256).reshape(size, 256)
    seen = counts.sum(1)
    kinds = (counts > 0).sum(1)
    at = _contexts(test, order)[2 - order :]
    count = counts[at, test[2:]]
    total = seen[at] + kinds[at]
    known = total > 0
    mixed = (count + kinds[at] * lower) / np.where(known, total, 1)
    return np.where(known, mixed, lower)


def _contexts(data: Bytes, order: int) -> npt.NDArray[np.int64]:
    """The `order` bytes before each of data[order:], as one number."""
    found = np.zeros(len(data) - order, dtype=np.int64)
    for back in range(order, 0, -1):
        found = found * 256 + data[order - back : len(data) - back]
    return found
