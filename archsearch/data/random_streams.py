"""Named random streams: what a stream yields depends on its name alone, never on what was drawn before."""

import hashlib

import numpy as np

IGNORE = -100
"""Target id that bears no loss (the default `ignore_index` of cross-entropy in torch)."""


def named_generator(*name: str | int) -> np.random.Generator:
    """A generator seeded by the whole of `name`; different names give independent streams.

    The parts are hashed together with their types and lengths, so ("a", 12) and ("a1", 2) differ, and a
    stream called "train" can never meet one called "held-out", whatever the seeds.
    """
    digest = hashlib.sha256(repr(name).encode()).digest()
    return np.random.default_rng(np.random.SeedSequence(list(np.frombuffer(digest, dtype=np.uint32))))
