"""A search space: an experiment with holes, and how it is searched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from archsearch.data import DomainSpec, TextSpec
from archsearch.data.sources import text_tokens
from archsearch.experiment.spec import Experiment, load_experiment
from archsearch.search.choosers import Chooser, EdgeChooser, RandomChooser, ReplayChooser
from archsearch.search.constraints import INVALID, violations
from archsearch.search.costs import CandidateCosts
from archsearch.search.holes import Filled, Hole, Keys, Node, Plain, Size
from archsearch.search.parsing import find_hole, parse_space
from archsearch.search.settings import SECTIONS, SearchSpec, Settings, check_sections
from archsearch.spec import ModelSpec, SpecError
from archsearch.spec.errors import Issue, refuse, validate
from archsearch.spec.loading import spec_from
from archsearch.spec.match import MATCH, freed
from archsearch.spec.source import Source

if TYPE_CHECKING:
    from archsearch.search.samplers import Proposer

START = "start_from"
"""The parameter that names the file which a candidate's layout was taken from."""


@dataclass(frozen=True)
class Candidate:
    """A space with its holes filled.

    experiment: None where the parts do not fit together; `problem` then says why, and where in the file.
    """

    params: dict[str, Any]
    experiment: Experiment | None
    problem: str = ""

    @cached_property
    def costs(self) -> CandidateCosts:
        assert self.experiment is not None
        return CandidateCosts(self.experiment)


@dataclass(frozen=True)
class SearchSpace:
    """A search-space file that was read and checked. `text` is the file as written."""

    source: Source
    text: str
    settings: Settings
    sections: Mapping[str, Node]
    starts: tuple[ModelSpec, ...] = ()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def search(self) -> SearchSpec:
        return self.settings.search

    @cached_property
    def size(self) -> Size:
        """Discrete layouts x continuous dimensions, of all sections together."""
        discrete, continuous = 1, 0
        for node in self.sections.values():
            discrete *= node.size().discrete
            continuous += node.size().continuous
        return Size(discrete, continuous)

    @cached_property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(hole for key, node in self.sections.items() for hole in node.holes(key))

    @cached_property
    def hash(self) -> str:
        """Of everything that decides which candidates are tried and what they score."""
        return hashlib.sha256(json.dumps(self._compared, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def samples(self) -> list[Experiment]:
        """Some valid candidates, always the same."""
        rng = np.random.default_rng(0)
        choosers: list[Chooser] = [EdgeChooser(last=False), EdgeChooser(last=True)]
        choosers += [RandomChooser(rng) for _ in range(20)]
        experiments = [self.candidate(chooser).experiment for chooser in choosers]
        return [experiment for experiment in experiments if experiment is not None]

    @property
    def sources(self) -> list[str]:
        """The sources that candidates' mixtures name."""
        return list(dict.fromkeys(name for experiment in self.samples for name in experiment.data.mixture))

    def check_data(self) -> None:
        """Read every text source that candidates train on or are scored on.

        A path that leads nowhere is a mistake in the file, not a failure of every trial; and the embedded
        domains are built here once instead of by each worker. Raises `SpecError`.
        """
        for name, source in {
            name: experiment.data.source(name)
            for experiment in self.samples
            for name in (*experiment.data.mixture, *experiment.domains)
        }.items():
            if isinstance(source.fields, DomainSpec | TextSpec):
                try:
                    text_tokens(source.fields, "train")
                except ValueError as error:
                    raise self.refuse(("data", "sources", name, source.name), str(error)) from None

    @property
    def budget(self) -> dict[str, float]:
        """What every candidate is trained with: `tokens`, where that is the same for all."""
        tokens = {experiment.training.tokens for experiment in self.samples}
        return {"tokens": tokens.pop()} if len(tokens) == 1 else {}

    def fill(self, chooser: Chooser, start: int | None = None) -> Filled:
        """Fill every hole. start: take the layout of that file of `start_from` for the `arch` section."""
        filled = Filled(value={})
        for key, node in self.sections.items():
            if key == "arch" and start is not None:
                filled.value[key] = self._start_layout(node, chooser, start, filled)
                filled.places[(key,)] = ("search", START, start)
                filled.params[START] = self.search.start_from[start]
            else:
                filled.value[key] = node.fill(chooser, key, (key,), filled)
        return filled

    def _start_layout(self, arch: Node, chooser: Chooser, start: int, filled: Filled) -> Any:
        """A given layout, with its free width left to the space's `match` where there is one."""
        match: Any = None
        if isinstance(arch, Keys) and MATCH in arch.items:
            match = arch.items[MATCH].fill(chooser, f"arch.{MATCH}", ("arch", MATCH), filled)
        elif isinstance(arch, Plain) and isinstance(arch.value, dict):
            match = arch.value.get(MATCH)
        return self.starts[start] if match is None else freed(self.starts[start], match)

    def candidate(self, chooser: Chooser, start: int | None = None) -> Candidate:
        """Fill every hole and read the result as an experiment."""
        filled = self.fill(chooser, start)
        try:
            return Candidate(filled.params, self.experiment(filled))
        except SpecError as error:
            return Candidate(filled.params, None, str(error))

    def replay(self, params: Mapping[str, Any]) -> Candidate:
        """The candidate whose parameters were recorded. Raises ValueError for those of another space."""
        return self.candidate(ReplayChooser(params), self.start_of(params))

    def start_of(self, params: Mapping[str, Any]) -> int | None:
        """Which file of `start_from` the recorded candidate's layout came from."""
        return self.search.start_from.index(params[START]) if START in params else None

    def experiment(self, filled: Filled) -> Experiment:
        """Raises `SpecError` located in the space's file."""
        value = {"name": self.name, **filled.value}
        return self.source.check(Experiment, lambda: validate(Experiment, value), filled.where)

    def violations(self, candidate: Candidate) -> dict[str, float]:
        """Each constraint's violation, > 0 where it is broken. Parts that do not fit break their own."""
        if candidate.experiment is None:
            return {INVALID: 1.0}
        return violations(self.settings.constraints, candidate.costs)

    def proposer(self) -> Proposer:
        """What decides the candidates, before any was asked for."""
        from archsearch.search.samplers import Proposer

        return Proposer(self)

    def changes_since(self, recorded: FilePath) -> list[str]:
        """What differs from a run's copy of its space. Raises `SpecError` where that cannot be read."""
        return self.changes_from(read_recorded_space(recorded))

    def changes_from(self, old: SearchSpace) -> list[str]:
        """What differs from `old`, one `path: old -> new` each; empty where the hashes are equal."""
        before, after = _flat(old._compared), _flat(self._compared)
        paths = sorted({*before, *after}, key=lambda path: (path.count("."), path))
        return [
            f"{path}: {before.get(path, 'nothing')} -> {after.get(path, 'nothing')}"
            for path in paths
            if before.get(path) != after.get(path)
        ]

    @cached_property
    def _compared(self) -> dict[str, Any]:
        value = {key: self.source.value[key] for key in SECTIONS if key in self.source.value}
        settings = self.settings.model_dump(mode="json")
        del settings["name"], settings["resources"], settings["search"]["trials"]
        del settings["search"]["storage"], settings["search"]["log"]
        return value | settings

    def refuse(self, path: tuple[str | int, ...], message: str) -> SpecError:
        """The error to raise for a mistake at `path` of the space's file."""
        return self.source.error([Issue(path, message)])


def load_space(path: str | FilePath) -> SearchSpace:
    """Read a search-space file and prove that it can be searched.

    Raises `SpecError` with the text `file:line:col: path: message`.
    """
    from archsearch.search.checks import check_space

    space = read_space(path)
    check_space(space)
    return space


def read_space(path: str | FilePath) -> SearchSpace:
    """Read a search-space file without trying candidates of it. Raises `SpecError`."""
    return _read(path, FilePath(path).parent)


def read_recorded_space(path: str | FilePath) -> SearchSpace:
    """Read a run's copy of its space, for comparing: the files that it starts from need not be near."""
    return _read(path, None)


def _read(path: str | FilePath, beside: FilePath | None) -> SearchSpace:
    source = Source.read(path)
    settings, sections = source.check(Settings, lambda: _parse(source.value))
    starts = []
    for i, name in enumerate(settings.search.start_from if beside is not None else []):
        assert beside is not None
        if not (beside / name).is_file():
            raise source.error([Issue(("search", START, i), f"no such file: {name}")])
        starts.append(_layout(beside / name))
    text = FilePath(path).read_text(encoding="utf-8-sig")
    return SearchSpace(source, text, settings, sections, tuple(starts))


def _layout(path: FilePath) -> ModelSpec:
    """A model spec's layout, or an experiment's, its free width solved where it leaves one."""
    source = Source.read(path)
    arch = source.value.get("arch") if isinstance(source.value, dict) else None
    return load_experiment(path).arch if isinstance(arch, dict) and MATCH in arch else spec_from(source)


def _parse(value: Any) -> tuple[Settings, dict[str, Node]]:
    check_sections(value)
    rest = {key: item for key, item in value.items() if key not in SECTIONS}
    found = find_hole(rest)
    if found is not None:
        refuse(found, f"{found[-1]!r} here; holes stand under {', '.join(SECTIONS)} only")
    settings = validate(Settings, rest)
    return settings, {key: parse_space(value[key], (key,)) for key in SECTIONS if key in value}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Leaves of nested values by dotted path, as text."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and value:
        items = dict(enumerate(value)).items()
    else:
        return {path: json.dumps(value, ensure_ascii=False)}
    return {
        leaf: text
        for key, item in items
        for leaf, text in _flat(item, f"{path}.{key}" if path else str(key)).items()
    }
