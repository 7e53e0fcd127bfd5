"""A stream of training steps that mixes sources by tokens, exactly and resumably.

The stream is a row of slots of `context` tokens. Which source fills slot t follows Tijdeman's quota rule (The
chairman assignment problem, Discrete Mathematics 32, 1980): with k sources, every prefix of n slots holds
p*n slots of each source to within 1 - 1/(2k - 2). So |tokens_i - p_i * N| stays below one slot at every
prefix of N tokens, for any weights. Taking the largest deficit instead does not guarantee that.

Shape suffixes: b = sequence, l = position within it, k = source, t = slot.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from archsearch.data.sources import Source, open_source
from archsearch.data.spec import DataSpec

Ids = npt.NDArray[np.int64]


_UNIT = 1 << 62
"""Shares are rounded to integers out of this, so that the schedule is exact and the same on every machine."""


def quota_schedule(weights: list[float]) -> Iterator[int]:
    """Source indices, one a slot, endlessly; `weights` sum to one, zero weights never come up."""
    share_k = [round(weight * _UNIT) for weight in weights]
    share_k[share_k.index(max(share_k))] += _UNIT - sum(share_k)
    present = [k for k, share in enumerate(share_k) if share > 0]
    parts = 2 * len(present) - 2
    surplus_k = [0] * len(share_k)
    while True:
        for k in present:
            surplus_k[k] += share_k[k]
        # Of several sources one is always ripe, as the surpluses add up to a slot; a lone one needs no rule.
        ripe = [k for k in present if surplus_k[k] * parts >= _UNIT] or present
        chosen = min(ripe, key=lambda k: Fraction(_UNIT * (parts - 1) - surplus_k[k] * parts, share_k[k]))
        surplus_k[chosen] -= _UNIT
        yield chosen


@dataclass(frozen=True)
class Group:
    """One source's sequences in a step; inputs and targets are int64 (sequences, length)."""

    source: str
    inputs_bl: Ids
    targets_bl: Ids
    weight: float
    """This source's share of the step's tokens; the weights of a step's groups sum to one."""


@dataclass(frozen=True)
class StepBatch:
    """What one optimiser step trains on: a group for each source that has a slot in it."""

    groups: tuple[Group, ...]
    tokens: int


class MixtureStream:
    """Batches of a mixture; `at(step)` is a pure function of the arguments and the step."""

    def __init__(
        self, spec: DataSpec, *, context: int, tokens_per_step: int, seed: int, split: str = "train"
    ) -> None:
        for loc, message in spec.check_context(context):
            raise ValueError(f"{'.'.join(loc)}: {message}")
        if tokens_per_step <= 0 or tokens_per_step % context:
            raise ValueError(
                f"tokens_per_step: {tokens_per_step} is not a positive multiple of the context, {context}"
            )
        weights = spec.weights
        self._names = [name for name, weight in weights.items() if weight > 0]
        self._sources: dict[str, Source] = {
            name: open_source(name, spec.source(name), context=context, seed=seed, split=split)
            for name in self._names
        }
        self._schedule = quota_schedule([weights[name] for name in self._names])
        self._slots_before_step = [[0] * len(self._names)]
        self._context = context
        self._slots_per_step = tokens_per_step // context

    def at(self, step: int) -> StepBatch:
        """The batch of step `step` (from 0)."""
        before, after = self._slots(step), self._slots(step + 1)
        groups = []
        for name, first, end in zip(self._names, before, after, strict=True):
            if end == first:
                continue
            source = self._sources[name]
            a_slot = self._context // source.length
            inputs_bl, targets_bl = source.sequences(first * a_slot, (end - first) * a_slot)
            groups.append(Group(name, inputs_bl, targets_bl, (end - first) / self._slots_per_step))
        return StepBatch(tuple(groups), self._slots_per_step * self._context)

    def counts(self, step: int) -> dict[str, int]:
        """Tokens that each source has given before step `step`; sources of weight zero are not listed."""
        return {
            name: slots * self._context for name, slots in zip(self._names, self._slots(step), strict=True)
        }

    def epochs(self, step: int) -> dict[str, float]:
        """Passes through each source's text before step `step`; 0 for generated sources."""
        return {
            name: self._sources[name].epochs(tokens // self._sources[name].length)
            for name, tokens in self.counts(step).items()
        }

    def _slots(self, step: int) -> list[int]:
        """Slots of each source before `step`; the schedule is extended as far as asked and kept."""
        if step < 0:
            raise ValueError(f"step: {step} is negative; expected 0 or more")
        while len(self._slots_before_step) <= step:
            slots = list(self._slots_before_step[-1])
            for _ in range(self._slots_per_step):
                slots[next(self._schedule)] += 1
            self._slots_before_step.append(slots)
        return self._slots_before_step[step]
