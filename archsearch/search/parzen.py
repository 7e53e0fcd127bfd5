"""Multi-objective tree-structured Parzen estimator (doi 10.1613/jair.1.13188), over conditional spaces.

What was told is split into the good and the rest: by non-dominated front and, within one, by what each adds
to the hypervolume of those before it; stopped trials come after all that were trained to their end, broken
constraints last. Both are modelled by a mixture of kernels, one a trial, each over all of its parameters
together, and of the prior; a good trial's kernel weighs as much as what that trial adds (as in
doi 10.1145/3377930.3389817). Candidates are drawn around good trials, and the one with the largest ratio of
the two densities is proposed. A parameter that a trial does not have (a hole that did not exist) has the
prior's density there.

Optuna's estimator does the same group by group of parameters that occur together, and takes seconds a
proposal where a stack has many positions and a study thousands of trials; this one takes milliseconds.

Shape legend: n trials, g good ones, k kernels, c candidates, p parameters. A number lies in [0, 1], a
category is its index, and NaN stands for a parameter that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from archsearch.search.choosers import Chooser, Label, RandomChooser, ReplayChooser, StratifiedChooser
from archsearch.search.crowding import by_gain, fronts
from archsearch.search.samplers import Result
from archsearch.search.space import Candidate, SearchSpace

Floats = npt.NDArray[np.float64]

CANDIDATES, FEWER_CANDIDATES = 128, 32
"""Drawn for each proposal; the fewer ones where `LATEST` trials make each of them dear."""

GOOD_SHARE = 0.08
MOST_GOOD = 25
PRIOR_WEIGHT = 1.0
"""Of the prior among kernels that weigh 1 on average."""

LEAST_WEIGHT = 0.1
"""Of a good trial's kernel, as a share of the heaviest one's."""

LATEST = 500
"""Trials of the rest that are modelled, the newest ones."""

BANDWIDTH = 0.2
"""Of a number's kernel, as a share of its range, for one trial; it narrows as more are good."""

STARTUP_FACTOR = 4
"""Proposals, in multiples of `startup`, after which the sampler learns from few feasible candidates."""

TRIES = 8
"""Candidates that are looked at, the most promising first, until one is new and keeps the constraints."""


class _Told(NamedTuple):
    trial: str
    result: Result


class Parzen:
    """At random, but evenly, until `startup` trials have ended; running trials count among the rest, so that
    no two are close."""

    def __init__(self, space: SearchSpace):
        self.space = space
        self.startup = space.search.startup
        self.signs = [-1.0 if o.direction == "maximize" else 1.0 for o in space.settings.objectives.values()]
        references = space.settings.references
        names = space.settings.objectives
        self.reference_d = np.array([references.get(name, math.nan) for name in names]) * self.signs
        self._params: dict[str, dict[str, Any]] = {}
        self._open: dict[str, None] = {}
        self._told: list[_Told] = []
        self._seen: set[str] = set()
        self._combinations: set[frozenset[tuple[str, Any]]] = set()
        self._codes = _Codes(len(space.holes))
        self._rows: dict[str, Floats] = {}

    def propose(self, trial: str, seed: int, at_random: bool) -> Chooser:
        rng = np.random.default_rng(seed)
        feasible = sum(not told.result.violations for told in self._told)
        if at_random:
            return RandomChooser(rng)
        if feasible < self.startup and len(self._params) < STARTUP_FACTOR * self.startup:
            return StratifiedChooser(rng, self.space.search.seed, len(self._params))
        good, weight_g, rest = self._split()
        if not good:
            return RandomChooser(rng)
        count = CANDIDATES if len(self._told) < LATEST else FEWER_CANDIDATES
        drawn = self._new([self._draw(good, weight_g, rng) for _ in range(count)])
        if not drawn:
            return RandomChooser(rng)
        rest = rest[-LATEST:]
        score_c = self._log_density(drawn, good, weight_g) - self._log_density(
            drawn, rest, np.ones(len(rest))
        )
        order = [drawn[i] for i in np.argsort(-score_c, kind="stable")]
        for params in order[:TRIES]:
            candidate = self.space.replay(params)
            if candidate.experiment is None or candidate.experiment.hash in self._seen:
                continue
            if not any(amount > 0 for amount in self.space.violations(candidate).values()):
                return ReplayChooser(params)
        return ReplayChooser(order[0])

    def replay(self, trial: str, seed: int, params: Mapping[str, Any]) -> Chooser:
        return ReplayChooser(params)

    def _new(self, drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that were not proposed before, once each."""
        found = {frozenset(params.items()): params for params in drawn}
        return [params for key, params in found.items() if key not in self._combinations]

    def taken(self, trial: str, candidate: Candidate) -> None:
        self._params[trial] = candidate.params
        self._open[trial] = None
        self._combinations.add(frozenset(candidate.params.items()))
        if candidate.experiment is not None:
            self._seen.add(candidate.experiment.hash)

    def tell(self, trial: str, result: Result) -> None:
        del self._open[trial]
        if result.state != "forgotten":
            self._told.append(_Told(trial, result))

    def _split(self) -> tuple[list[str], Floats, list[str]]:
        """The good trials and their kernels' weights, 1 on average; the rest in the order in which they
        ended, running ones last."""
        ended = [told for told in self._told if told.result.state != "rejected"]
        count = min(MOST_GOOD, math.ceil(GOOD_SHARE * len(ended)))
        order: list[str] = []
        gains: list[float] = []
        for share in sorted({told.result.share for told in ended}, reverse=True):
            same = [told for told in ended if told.result.share == share]
            costs_nd = np.array([told.result.values for told in same]) * self.signs
            for front_m in fronts(costs_nd):
                if len(order) >= count:
                    break
                places, added = by_gain(costs_nd[front_m], self.reference_d)
                order += [same[m].trial for m in front_m[places]]
                gains += added
        good = order[:count]
        chosen = set(good)
        rest = [told.trial for told in self._told if told.trial not in chosen]
        return good, _weights(gains[:count]), rest + list(self._open)

    def _draw(self, good: list[str], weight_g: Floats, rng: np.random.Generator) -> dict[str, Any]:
        """Parameters around a good trial, or around none of them: the prior is one of the kernels."""
        share_k = np.append(weight_g, PRIOR_WEIGHT) / (weight_g.sum() + PRIOR_WEIGHT)
        kernel = int(rng.choice(len(share_k), p=share_k))
        center = self._params[good[kernel]] if kernel < len(good) else {}
        return self.space.fill(_KernelChooser(center, self._codes, len(good), rng)).params

    def _log_density(self, drawn: list[dict[str, Any]], trials: list[str], weight_n: Floats) -> Floats:
        """Of each candidate under the mixture of the trials' kernels and the prior, as `(c,)`."""
        codes = self._codes
        points_cp = np.array([codes.encode(params) for params in drawn])
        centers_np = np.full((len(trials), len(codes.names)), np.nan)
        for n, trial in enumerate(trials):
            centers_np[n] = self._encoded(trial)
        log_cn = np.zeros((len(drawn), len(trials)))
        prior_c = np.zeros(len(drawn))
        width = codes.bandwidth(len(trials))
        # In an order of their own: sums must not depend on which parameter was met first.
        for p in (codes.names[name] for name in sorted(codes.names)):
            sizes = codes.sizes[p]
            point_c1, center_1n = points_cp[:, p, None], centers_np[None, :, p]
            exists_c = ~np.isnan(point_c1[:, 0])
            if not exists_c.any():
                continue
            prior = -math.log(sizes) if sizes else 0.0
            if sizes:
                same, other = _category_weights(sizes, len(trials))
                kernel_cn = np.where(point_c1 == center_1n, math.log(same), math.log(other))
            else:
                kernel_cn = -0.5 * ((point_c1 - center_1n) / width) ** 2 - math.log(
                    width * math.sqrt(2 * math.pi)
                )
            kernel_cn = np.where(np.isnan(center_1n), prior, kernel_cn)
            log_cn += np.where(exists_c[:, None], kernel_cn, 0.0)
            prior_c += np.where(exists_c, prior, 0.0)
        all_cn = np.concatenate((log_cn, prior_c[:, None]), axis=1)
        top_c = all_cn.max(axis=1)
        weight_k = np.append(weight_n, PRIOR_WEIGHT)
        return top_c + np.log(np.exp(all_cn - top_c[:, None]) @ weight_k / weight_k.sum())

    def _encoded(self, trial: str) -> Floats:
        """A trial's parameters as numbers; again only where new parameters have become known."""
        found_p = self._rows.get(trial)
        if found_p is None or len(found_p) < len(self._codes.names):
            found_p = self._rows[trial] = self._codes.encode(self._params[trial])
        return found_p


class _Codes:
    """Parameters as numbers. A parameter is known from the first time that it is drawn."""

    def __init__(self, holes: int) -> None:
        self.holes = holes
        self.names: dict[str, int] = {}
        self.sizes: list[int] = []
        """Of each parameter: its number of categories, 0 for a number."""
        self._labels: list[tuple[Label, ...]] = []
        self._ranges: list[tuple[float, float, bool]] = []

    def bandwidth(self, trials: int) -> float:
        """Scott's rule for so many trials, and as many parameters as the space has holes."""
        return float(BANDWIDTH * max(1, trials) ** (-1.0 / (self.holes + 4)))

    def category(self, name: str, choices: Sequence[Label]) -> None:
        if name not in self.names:
            self._add(name, tuple(choices), (0.0, 1.0, False))

    def number(self, name: str, low: float, high: float, log: bool) -> None:
        if name not in self.names:
            self._add(name, (), (low, high, log))

    def encode(self, params: Mapping[str, Any]) -> Floats:
        """`(p,)`, NaN where a parameter does not exist."""
        found_p = np.full(len(self.names), np.nan)
        for name, value in params.items():
            if (p := self.names.get(name)) is not None:
                found_p[p] = self._code(p, value)
        return found_p

    def _code(self, p: int, value: Any) -> float:
        if self.sizes[p]:
            return next(i for i, label in enumerate(self._labels[p]) if _same(label, value))
        return unit(value, *self._ranges[p])

    def _add(self, name: str, labels: tuple[Label, ...], bounds: tuple[float, float, bool]) -> None:
        self.names[name] = len(self.names)
        self.sizes.append(len(labels))
        self._labels.append(labels)
        self._ranges.append(bounds)


class _KernelChooser(RandomChooser):
    """Draws every parameter from the kernel around `center`, or from the prior where that lacks it."""

    def __init__(self, center: Mapping[str, Any], codes: _Codes, trials: int, rng: np.random.Generator):
        super().__init__(rng)
        self.center = center
        self.codes = codes
        self.trials = trials

    def categorical(self, name: str, choices: Sequence[Label]) -> Label:
        self.codes.category(name, choices)
        same, other = _category_weights(len(choices), self.trials)
        at = next((i for i, choice in enumerate(choices) if _same(choice, self.center.get(name))), None)
        if at is None or self.rng.random() >= same - other:
            return super().categorical(name, choices)
        return choices[at]

    def integer(self, name: str, low: int, high: int, step: int) -> int:
        self.codes.number(name, low, high, False)
        if name not in self.center or low == high:
            return super().integer(name, low, high, step)
        return low + step * round((self._near(name, low, high, False) - low) / step)

    def real(self, name: str, low: float, high: float, log: bool) -> float:
        self.codes.number(name, low, high, log)
        return self._near(name, low, high, log) if name in self.center else super().real(name, low, high, log)

    def _near(self, name: str, low: float, high: float, log: bool) -> float:
        width = self.codes.bandwidth(self.trials)
        at = unit(self.center[name], low, high, log)
        drawn = -1.0
        while not 0 <= drawn <= 1:
            drawn = at + width * float(self.rng.standard_normal())
        value = low * (high / low) ** drawn if log else low + drawn * (high - low)
        return min(high, max(low, value))


def unit(value: float, low: float, high: float, log: bool) -> float:
    """A number's place in its range, 0 to 1."""
    if low == high:
        return 0.0
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def _weights(gains: Sequence[float]) -> Floats:
    """Of the good trials' kernels, 1 on average, by what each adds to the hypervolume of those before it."""
    gain_g = np.array(gains)
    if not gain_g.any():  # no reference point, or nothing better than it
        return np.ones(len(gain_g))
    weight_g: Floats = np.maximum(gain_g / gain_g.max(), LEAST_WEIGHT)
    return weight_g / weight_g.mean()


def _category_weights(categories: int, trials: int) -> tuple[float, float]:
    """Probability of a kernel's own category, and of each other one: one trial and a share of the prior."""
    prior = 1.0 / (trials + 1)
    total = 1.0 + categories * prior
    return (1.0 + prior) / total, prior / total


def _same(label: Label, value: Any) -> bool:
    """Equal, and not merely because True is 1."""
    return label == value and isinstance(label, bool) == isinstance(value, bool)
