"""What a sweep knows of each trial, and what a trial's lines in the record say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from archsearch.search.samplers import finite
from archsearch.search.space import Candidate

NON_FINITE = "non-finite metric"
BAD_CANDIDATE = ("non-finite loss", NON_FINITE, "out of memory")
"""Causes of failure that say something about the candidate; of others the sampler learns nothing."""


@dataclass
class Known:
    """A trial as far as a sweep needs it. candidate: without its experiment once the trial has ended; rungs:
    how many it has passed; seconds: of work, when last told; retries: how often its worker was lost; node: of
    a cluster, that worked on it last."""

    state: str
    candidate: Candidate
    values: dict[str, float] = field(default_factory=dict)
    rungs: int = 0
    seconds: float = 0.0
    retries: int = 0
    node: str | None = None


def not_finite(values: Mapping[str, float | None], seconds: float | None) -> dict[str, Any] | None:
    """The event's fields of a trial that scored no number somewhere."""
    broken = [name for name, value in values.items() if not finite([value])]
    if not broken:
        return None
    cause = {"kind": NON_FINITE, "message": f"{', '.join(broken)} is not a finite number"}
    return {"cause": cause, "seconds": seconds}


def identity(candidate: Candidate) -> dict[str, Any]:
    """What every line about a trial says, so that each can be read by itself. values: none yet."""
    found = None if candidate.experiment is None else candidate.experiment.hash
    return {"values": {}, "params": candidate.params, "hash": found}
