"""What fills the holes of a search space: a random generator, a recorded choice, an edge of the space."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from zlib import crc32

import numpy as np

STRATA = 8
"""Equal parts of a number's range, of which a stratified draw takes each once before it takes one again."""

Label = str | int | float | bool
"""The name of an alternative: the value itself where it is a plain one."""


class Chooser(Protocol):
    """Decides one parameter after the other, in the order in which a space asks for them."""

    def categorical(self, name: str, choices: Sequence[Label]) -> Label: ...

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        """One of low, low + step, ..., high; `high` is on the grid."""
        ...

    def real(self, name: str, low: float, high: float, log: bool) -> float: ...


class RandomChooser:
    """Every parameter independent and uniform; uniform in the logarithm where `log` says so."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        return choices[int(self.rng.integers(len(choices)))]

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        return low + step * int(self.rng.integers((high - low) // step + 1))

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        if log:
            # exp(log(high)) may round to just above high; numpy knows no logarithm of a long integer
            ends = np.log(float(low)), np.log(float(high))
            return min(high, max(low, float(np.exp(self.rng.uniform(*ends)))))
        return float(self.rng.uniform(low, high))


class StratifiedChooser(RandomChooser):
    """Random, but even over candidates that follow each other: Latin hypercube sampling, block by block.

    In every block of k candidates each of a parameter's k alternatives is taken once, in a random order; for
    numbers, k is `STRATA` parts of their range. One candidate by itself is as random as by `RandomChooser`.

    index: how many candidates came before; seed: the same for all of them.
    """

    def __init__(self, rng: np.random.Generator, seed: int, index: int):
        super().__init__(rng)
        self.seed = seed
        self.index = index

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        return choices[self._stratum(name, len(choices))]

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        count = (high - low) // step + 1
        return low + step * min(count - 1, int(count * self._share(name)))

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        share = self._share(name)
        value = low * (high / low) ** share if log else low + share * (high - low)
        return min(high, max(low, value))

    def _share(self, name: str) -> float:
        return (self._stratum(name, STRATA) + float(self.rng.random())) / STRATA

    def _stratum(self, name: str, strata: int) -> int:
        block, place = divmod(self.index, strata)
        order = np.random.default_rng([self.seed, crc32(name.encode()), block]).permutation(strata)
        return int(order[place])


class EdgeChooser:
    """The first alternative and the low end everywhere, or the last alternative and the high end."""

    def __init__(self, last: bool):
        self.last = last

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        return choices[-1 if self.last else 0]

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        return high if self.last else low

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        return high if self.last else low


class ReplayChooser:
    """Parameters as they were recorded.

    Raises ValueError for a parameter that the record lacks or that is no longer possible.
    """

    def __init__(self, params: Mapping[str, Any]):
        self.params = params

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        found = self._recorded(name)
        for choice in choices:
            if choice == found and isinstance(choice, bool) == isinstance(found, bool):
                return choice
        raise ValueError(f"{name}: {found!r} is not among the alternatives {list(choices)}")

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        found = self._recorded(name)
        if not isinstance(found, int) or not low <= found <= high or (found - low) % step:
            raise ValueError(f"{name}: {found!r} is not in {low}..{high} by {step}")
        return found

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        found = self._recorded(name)
        if not isinstance(found, int | float) or not low <= found <= high:
            raise ValueError(f"{name}: {found!r} is not in [{low}, {high}]")
        return float(found)

    def _recorded(self, name: str) -> Any:
        if name not in self.params:
            raise ValueError(f"{name}: not recorded")
        return self.params[name]


class ForcedChooser(RandomChooser):
    """Random, except for what is forced: `general_name` of a parameter -> its value.

    What is forced at the open positions of a stack is forced at about half of them, so that the other
    entries that it may need stand beside it.
    """

    def __init__(self, rng: np.random.Generator, forced: Mapping[str, Any]):
        super().__init__(rng)
        self.forced = forced

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        return self._forced(name, super().categorical(name, choices))

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        return self._forced(name, super().integer(name, low, high, step))

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        return self._forced(name, super().real(name, low, high, log))

    def _forced(self, name: str, drawn: Any) -> Any:
        general = general_name(name)
        if general not in self.forced or (general != name and self.rng.random() < 0.5):
            return drawn
        return self.forced[general]


def general_name(name: str) -> str:
    """A parameter's name with the positions of stacks left open: `layers.0.$stack.*.mamba2.d_state`."""
    return re.sub(r"\$stack\.\d+", "$stack.*", name)
