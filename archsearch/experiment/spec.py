"""One experiment: a model, the data it learns from, how it is trained and what it is scored on.

An experiment file is a search space without holes; `front/*.yaml` of a run are experiment files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, ValidationError, model_validator

from archsearch.data.heldout import recall_spec
from archsearch.data.spec import BUILT_IN, DataSpec
from archsearch.evaluation.spec import EvaluationSpec
from archsearch.experiment.rules import resolve
from archsearch.spec import ModelSpec
from archsearch.spec.errors import Issue, dotted, issues_of, nearest, refuse, refuse_all, shown, validate
from archsearch.spec.layers import Spec
from archsearch.spec.loading import spec_from
from archsearch.spec.source import Source
from archsearch.training.spec import TrainingSpec


def _folder_name(value: str) -> str:
    """Runs are kept in folders of their experiment's or search's name."""
    if not value.isprintable() or {"/", "\\"} & set(value) or value in (".", ".."):
        refuse((), f"a name is also a folder's, without slashes and line breaks, found {shown(value)}")
    return value


FolderName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_folder_name)]


def _parse_arch(value: Any) -> ModelSpec:
    """A model spec written in place."""
    return value if isinstance(value, ModelSpec) else validate(ModelSpec, value)


Arch = Annotated[ModelSpec, PlainValidator(_parse_arch), PlainSerializer(lambda spec: spec.dump())]


class Experiment(Spec):
    """`arch`, `data`, `training`, `evaluation`; the last three have defaults.

    `arch.match`, `training.flops` and a rule under `training.lr` are worked out when an experiment is read
    (`archsearch.experiment.rules`); the experiment holds what came out.
    """

    name: FolderName = "experiment"
    arch: Arch
    data: DataSpec = DataSpec(mixture={"reference": 0.5, "mqar": 0.5})
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="before")
    @classmethod
    def _work_out(cls, value: Any) -> Any:
        return resolve(value)

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        if problems := list(self._problems()):
            refuse_all(problems)
        return self

    def _problems(self) -> Iterator[Issue]:
        """What each section allows but the sections together do not."""
        if self.arch.tokenizer is None:
            yield Issue(("arch", "vocab_size"), "training needs a tokenizer, not only a vocabulary's size")
        for path, message in self.data.check_context(self.training.context):
            yield Issue(("data", *path), message)
        known = list(dict.fromkeys([*self.data.mixture, *self.data.sources, *BUILT_IN]))
        tasks = [t for t in self.recall_tasks if t in known and self.data.source(t).kind == "recall"]
        positions = self.arch.embedding.positions
        longest = max(self.training.context, *self.contexts, *self._recall_lengths(tasks))
        if positions is not None and longest > positions.learned:
            yield Issue(
                ("arch", "embedding", "positions", "learned"),
                f"{positions.learned} positions are fewer than the longest context, {longest}",
            )
        if self.domains and max(self.contexts) > self.evaluation.tokens:
            yield Issue(
                ("evaluation", "tokens"),
                f"{self.evaluation.tokens} held-out tokens hold no window of {max(self.contexts)}",
            )
        for i, name in enumerate(self.evaluation.domains or []):
            if name not in known:
                yield Issue(("evaluation", "domains", i), f"unknown source {name!r}{nearest(name, known)}")
            elif self.data.source(name).kind != "text":
                yield Issue(("evaluation", "domains", i), f"{name!r} is a recall source; list it in recall")
        for i, name in enumerate(self.evaluation.recall or []):
            if name not in known:
                yield Issue(("evaluation", "recall", i), f"unknown source {name!r}{nearest(name, known)}")
            elif self.data.source(name).kind != "recall":
                yield Issue(("evaluation", "recall", i), f"{name!r} is a text source; list it in domains")
        for task in tasks:
            yield from self._unaskable(task)

    def _recall_lengths(self, tasks: list[str]) -> list[int]:
        """Lengths at which the tasks are asked."""
        return self.evaluation.recall_contexts or [self.data.source(task).length or 0 for task in tasks]

    def _unaskable(self, task: str) -> Iterator[Issue]:
        for i, length in enumerate(self.evaluation.recall_contexts or []):
            try:
                recall_spec(self.data.source(task), length)
            except ValueError as error:
                yield Issue(("evaluation", "recall_contexts", i), str(error))

    @property
    def contexts(self) -> list[int]:
        """Lengths at which text is scored."""
        return self.evaluation.contexts or [self.training.context]

    @property
    def domains(self) -> list[str]:
        """Text sources that are scored."""
        found = [name for name in self.data.mixture if self.data.source(name).kind == "text"]
        return self.evaluation.domains if self.evaluation.domains is not None else found

    @property
    def recall_tasks(self) -> list[str]:
        """Recall sources that are asked."""
        found = [name for name in self.data.mixture if self.data.source(name).kind == "recall"]
        return self.evaluation.recall if self.evaluation.recall is not None else found or ["mqar"]

    @cached_property
    def hash(self) -> str:
        """Canonical hash of what the experiment computes: equal experiments give equal results."""
        parts: dict[str, Any] = {"arch": self.arch.hash, "contexts": self.contexts}
        # Pairs, not a mapping: the order of the sources decides which one is drawn when two are due.
        parts |= {"domains": self.domains, "recall": self.recall_tasks}
        parts["weights"] = [[name, weight] for name, weight in self.data.weights.items() if weight > 0]
        parts["sources"] = {
            name: self.data.source(name).model_dump(mode="json")
            for name in sorted({*self.data.mixture, *self.domains, *self.recall_tasks})
        }
        parts["training"] = self.training.model_dump(mode="json")
        parts["evaluation"] = self.evaluation.model_dump(
            mode="json", exclude={"contexts", "domains", "recall"}
        )
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_training(self, **changes: Any) -> Experiment:
        """A copy with other training fields, checked."""
        return self._with("training", changes)

    def with_evaluation(self, **changes: Any) -> Experiment:
        """A copy with other evaluation fields, checked."""
        return self._with("evaluation", changes)

    def _with(self, section: str, changes: dict[str, Any]) -> Experiment:
        values = self.dump()
        try:
            return validate(Experiment, {**values, section: {**values[section], **changes}})
        except ValidationError as error:
            issue = issues_of(error, Experiment)[0]
            raise ValueError(f"{dotted(issue.path)}: {issue.message}") from None

    def dump(self) -> dict[str, Any]:
        """Plain YAML values; `Experiment.model_validate` takes them back."""
        sections: dict[str, Any] = {"name": self.name, "arch": self.arch.dump()}
        for name in ("data", "training", "evaluation"):
            sections[name] = getattr(self, name).model_dump(mode="json", exclude_unset=True)
        return sections


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file, or a bare model spec (then every other section has its defaults).

    Raises `SpecError` with the text `file:line:col: path: message`.
    """
    source = Source.read(path)
    value = source.value
    if isinstance(value, dict) and "arch" not in value and "d_model" in value:
        arch = spec_from(source)
        return source.check(Experiment, lambda: validate(Experiment, {"name": arch.name, "arch": arch}))
    return source.check(Experiment, lambda: validate(Experiment, value))
