"""A source model in archsearch's terms: the spec's values and the weights' rules, from one traversal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from archsearch.interop.compact import compact
from archsearch.interop.fields import Fields
from archsearch.interop.rules import Rule, Rules, rows
from archsearch.spec.errors import SpecError, issues_of
from archsearch.spec.model import ModelSpec


@dataclass(frozen=True)
class Part:
    """One entry of `layers`, and where its weights are in the source.

    kind, fields: the entry; `share` and its fields where it is one. rules: our names are relative to the
    entry's block.
    """

    kind: str
    fields: dict[str, Any]
    rules: Rules

    @property
    def entry(self) -> dict[str, Any]:
        """As it stands in `layers`."""
        return self.fields if self.kind == "share" else {self.kind: self.fields}

    def having(self, **fields: Any) -> Part:
        """The part with more fields."""
        return replace(self, fields=self.fields | fields)

    def normed(self, before: str | None = None, after: str | None = None) -> Part:
        """The part with the norms that the source has before and after it, by their names."""
        names = {"norm": before, "post_norm": after}
        rules = tuple(Rule((f"{name}.weight",), f"{ours}.weight") for ours, name in names.items() if name)
        placed = self if after is None else self.having(norm="sandwich" if before else "post")
        return replace(placed, rules=(*rules, *self.rules))

    def reordered(self, ours: str, order: Tensor) -> Part:
        """The part, of whose projection the source has the rows in another order: order[i] is at place i."""
        names = (f"{ours}.weight", f"{ours}.bias")
        rules = (replace(rule, join=rows(order)) if rule.ours in names else rule for rule in self.rules)
        return replace(self, rules=tuple(rules))


@dataclass(frozen=True)
class Trunk:
    """Everything around the layers: the spec's other values, and the rules of embedding, norm and head."""

    values: dict[str, Any]
    rules: Rules


@dataclass(frozen=True)
class Family:
    """A table: the source's config -> the parts of our model.

    model_types: as in config.json. trunk, layers: read the config. ignored: fields that change nothing, or
    nothing in some models, each with the reason (see `Fields`).
    """

    model_types: tuple[str, ...]
    trunk: Callable[[Fields], Trunk]
    layers: Callable[[Fields], Iterator[Part]]
    ignored: Mapping[str, str] = field(default_factory=dict)

    def blueprint(self, config: Any, ignore: Collection[str] = ()) -> Blueprint:
        """Raises `SpecError` for a field that is not understood. ignore: fields that the user vouches for."""
        fields = Fields(config, self.ignored)
        fields.only("is_encoder_decoder", False)
        try:
            trunk, parts = self.trunk(fields), list(self.layers(fields))
            fields.finish(ignore)
        except SpecError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            fields.unusable(error)
        values = trunk.values | compact([part.entry for part in parts])
        inside = [rule.under(f"layers.{i}") for i, part in enumerate(parts) for rule in part.rules]
        return Blueprint(config.model_type, values, (*trunk.rules, *inside))


@dataclass(frozen=True)
class Blueprint:
    """values: what `ModelSpec` takes. rules: one for each of the model's tensors."""

    model_type: str
    values: dict[str, Any]
    rules: Rules

    def spec(self) -> ModelSpec:
        """Raises `SpecError` for a model that archsearch cannot describe."""
        try:
            return ModelSpec.model_validate(self.values)
        except ValidationError as error:
            issue = issues_of(error, ModelSpec)[0]
            place = ".".join(map(str, issue.path))
            raise SpecError(f"{self.model_type}: as a spec, {place}: {issue.message}") from None
