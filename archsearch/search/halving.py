"""Successive halving over tokens trained: which trials go on, and which have shown enough.

Asynchronous (ASHA, arXiv 1810.05934), over the whole front (MO-ASHA, arXiv 2106.12639): at every rung, a
trial is compared with all that came there, by non-dominated front and, within a front, by how far it is from
those already chosen. With one objective named, the order is that objective's.

Shape legend: n trials at a rung, d objectives. All values are costs here: less is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from archsearch.search.crowding import fronts, spread
from archsearch.search.settings import FRONT_ORDER, HalvingSpec

Floats = npt.NDArray[np.float64]

FIRST_FACTOR = 2
"""Trials, in multiples of `eta`, that come to a rung of the stopping type before it stops any: the better of
two early ones says little, and both teach the sampler more where they are trained to their end."""

Decision = Literal["continue", "pause", "stop"]


@dataclass
class Halving:
    """The rungs of a study, in the order in which trials came there.

    objectives: name -> direction. Nothing here is kept apart from the study's record: `record` is called
    with what happened, now or earlier, and the rest follows.
    """

    spec: HalvingSpec
    objectives: Mapping[str, str]
    rungs: list[dict[str, list[float]]] = field(init=False)
    _promoted: list[set[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.rungs = [{} for _ in self.shares]
        self._promoted = [set() for _ in self.shares]

    @property
    def shares(self) -> list[float]:
        """Shares of the training tokens at which trials are compared, lowest first."""
        return self.spec.shares

    def decide(self, trial: str, level: int, values: Sequence[float]) -> Decision:
        """What becomes of a trial that comes to a rung with these values. Nothing is noted."""
        if self.spec.type == "promotion":
            return "pause"
        there = {**self.rungs[level], trial: list(values)}
        if len(there) < FIRST_FACTOR * self.spec.eta:
            return "continue"
        kept = math.ceil(len(there) / self.spec.eta)
        return "continue" if self._ranks(there)[trial] < kept else "stop"

    def record(self, trial: str, level: int, values: Sequence[float]) -> None:
        """A trial came to a rung."""
        self.rungs[level][trial] = list(values)

    def promote(self, trial: str, level: int) -> None:
        """A trial that waited at a rung goes on."""
        self._promoted[level].add(trial)

    def promotable(self, last: bool = False) -> tuple[str, int] | None:
        """A waiting trial that is among the best of its rung, of the highest rung that has one.

        last: no further trial will come, so that even a rung of few has a best one.
        """
        if self.spec.type != "promotion":
            return None
        for level in reversed(range(len(self.rungs))):
            rung, promoted = self.rungs[level], self._promoted[level]
            best = math.ceil(len(rung) / self.spec.eta) if last else len(rung) // self.spec.eta
            if best <= len(promoted):
                continue
            ranks = self._ranks(rung)
            for trial in sorted(rung, key=ranks.__getitem__)[:best]:
                if trial not in promoted:
                    return trial, level
        return None

    def _ranks(self, rung: dict[str, list[float]]) -> dict[str, int]:
        """Each trial's place, 0 for the first."""
        signs_d = np.array([-1.0 if way == "maximize" else 1.0 for way in self.objectives.values()])
        costs_nd = np.array(list(rung.values())) * signs_d
        if self.spec.by != FRONT_ORDER:
            costs_nd = costs_nd[:, [list(self.objectives).index(self.spec.by)]]
        return {trial: place for trial, place in zip(rung, ranks(costs_nd).tolist(), strict=True)}


def ranks(costs_nd: Floats) -> npt.NDArray[np.intp]:
    """Each of the `(n, d)` costs' place in `priority`, as `(n,)`: the inverse of that permutation."""
    order_n = priority(costs_nd)
    ranks_n = np.empty(len(order_n), dtype=np.intp)
    ranks_n[order_n] = np.arange(len(order_n))
    return ranks_n


def priority(costs_nd: Floats) -> npt.NDArray[np.intp]:
    """Indices of the `(n, d)` costs from first to last: front by front, spread out within each."""
    order: list[int] = []
    for front_m in fronts(costs_nd):
        order += front_m[spread(costs_nd[front_m])].tolist()
    return np.array(order, dtype=np.intp)
