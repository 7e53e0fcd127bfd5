"""JSON Schema of search spaces and experiments, for editors: a model spec's, with the other sections around
it and holes wherever a value may stand.

As with a model spec's, what the loader takes validates here, not the reverse: whether alternatives fit
together only the loader knows.
"""

from __future__ import annotations

from archsearch.data.spec import DataSpec, SourceSpec
from archsearch.evaluation.spec import EvaluationSpec
from archsearch.experiment.rules import FLOPS, LR, LearningRateRule
from archsearch.search.parsing import MAX_ALTERNATIVES, MAX_PARTS
from archsearch.search.settings import HalvingSpec, Settings
from archsearch.spec.cost_names import COSTS
from archsearch.spec.entries import layer_kinds
from archsearch.spec.errors import model_in
from archsearch.spec.match import D_MODEL, MATCH, widths
from archsearch.spec.schema import (
    BRANCH,
    DIALECT,
    Schema,
    described,
    json_schema,
    of_model,
    one_of,
    optional,
    put,
    table,
)
from archsearch.study.schema import DIRECTIONS
from archsearch.training.spec import TrainingSpec

HOLE: Schema = {"$ref": "#/$defs/hole"}
OTHER_HOLE: Schema = {"$ref": "#/$defs/hole-but-choice"}
QUANTITY: Schema = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*\d"}]}
"""A number, or one with its unit."""


def space_schema() -> Schema:
    """Schema (draft 2020-12) of a search-space file; an experiment is one without holes."""
    arch = json_schema()
    defs: Schema = arch.pop("$defs")
    sections = {
        "arch": _arch(arch),
        "data": _data(defs),
        "training": _training(defs),
        "evaluation": of_model(EvaluationSpec, defs),
    }
    defs = {name: _opened(part) for name, part in defs.items()}
    places = {name: put(defs, f"section.{name}", _opened(section)) for name, section in sections.items()}
    root = _settings(defs)
    root["properties"] |= {name: _or_hole(place) for name, place in places.items()}
    defs["hole-but-choice"] = _other_holes()
    any_choice = _one_key("$choice", _alternatives({})) | {"description": "One of these."}
    defs["hole"] = {"description": "A hole: what is searched.", "anyOf": [any_choice, OTHER_HOLE]}
    about = "A search space: an experiment with holes, and how it is searched. Without holes, an experiment."
    head = {"$schema": DIALECT, "title": "archsearch search space", "description": about}
    return {**root, **head, "required": ["arch"], "$defs": defs}


def _arch(model: Schema) -> Schema:
    """The model spec's schema; its width may be left to `match`, and words may be left to holes."""
    found = {key: item for key, item in model.items() if key not in ("$schema", "title", "required")}
    one_of_each = ((D_MODEL, MATCH), ("tokenizer", "vocab_size"), ("layers", "pattern"))
    found["allOf"] = [{"anyOf": [{"required": [key]} for key in keys]} for keys in one_of_each]
    by = [D_MODEL, *(f"{kind}.{field}" for kind in layer_kinds() for field in widths(kind))]
    about = "Solve one free width, so that every candidate has this budget."
    match = {
        **table({"by": {"enum": by, "description": "The width that is free."}}),
        "patternProperties": {rf"^({'|'.join(COSTS)})(@\d+)?$": QUANTITY},
        "required": ["by"],
    }
    return found | {"properties": found["properties"] | {MATCH: match | {"description": about}}}


def _data(defs: Schema) -> Schema:
    found = of_model(DataSpec, defs)
    kinds = {}
    for kind in SourceSpec.KINDS:
        fields = model_in(SourceSpec.model_fields[kind].annotation)
        assert fields is not None
        kinds[kind] = put(defs, f"source.{kind}", of_model(fields, defs))
    sources = {
        "type": "object",
        "additionalProperties": one_of(kinds, "A source of text or of recall tasks."),
    }
    found["properties"]["sources"] = sources
    return found


def _training(defs: Schema) -> Schema:
    found = of_model(TrainingSpec, defs)
    fields = found["properties"]
    rule = put(defs, "LearningRateRule", of_model(LearningRateRule, defs))
    fields[LR] = described({"anyOf": [fields[LR], rule]}, fields[LR])
    about = "Instead of tokens: floating-point operations that the training may cost, forward and backward."
    fields[FLOPS] = QUANTITY | {"description": about}
    return found


def _settings(defs: Schema) -> Schema:
    """The sections that hold no holes."""
    found = of_model(Settings, defs)
    fields = found["properties"]
    fields["objectives"]["additionalProperties"] = {
        "anyOf": [{"enum": list(DIRECTIONS)}, {"$ref": "#/$defs/Objective"}]
    }
    fields["constraints"]["items"] = {"type": "string", "pattern": "[<>]=?"}
    halving = put(defs, "HalvingSpec", of_model(HalvingSpec, defs))
    search = defs["SearchSpec"]["properties"]
    words = {"enum": ["auto", "none", "halving"]}
    chosen = {**table({"halving": optional(halving)}), "required": ["halving"]}
    search["scheduler"] = described({"anyOf": [words, chosen]}, search["scheduler"])
    return found


def _other_holes() -> Schema:
    numbers = {"type": "array", "items": QUANTITY, "minItems": 2, "maxItems": 2}
    names = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": MAX_PARTS}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    bounds = {"type": "object", "additionalProperties": share}
    bounded = {**table({"of": names, "min": bounds, "max": bounds}), "required": ["of"]}
    depth = {"anyOf": [{"type": "integer", "minimum": 1}, HOLE]}
    layers = _alternatives({"anyOf": [BRANCH, HOLE]}) | {"description": "Layers, or lists of layers."}
    stack = {**table({"depth": depth, "of": layers}), "required": ["depth", "of"]}
    forms: dict[str, tuple[Schema, str]] = {
        "$int": ({**numbers, "maxItems": 3}, "A whole number: [low, high] or [low, high, step]."),
        "$float": (numbers, "A number from low to high."),
        "$log": (numbers, "A number from low to high, uniform in its logarithm."),
        "$simplex": ({"anyOf": [names, bounded]}, "Weights that sum to one, uniform over all mixtures."),
        "$stack": (stack, "That many layers, each one of these."),
    }
    return {"anyOf": [_one_key(word, form | {"description": about}) for word, (form, about) in forms.items()]}


def _one_key(word: str, form: Schema) -> Schema:
    return {**table({word: form}), "required": [word]}


def _alternatives(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": MAX_ALTERNATIVES}


def _or_hole(place: Schema) -> Schema:
    """What may stand at a place: a value, a choice of values or of holes, or another hole."""
    choice = _one_key("$choice", _alternatives({"anyOf": [place, HOLE]}))
    kept = {"description": place["description"]} if "description" in place else {}
    return {"anyOf": [place, choice, OTHER_HOLE]} | kept


def _opened(schema: Schema) -> Schema:
    """A schema with a hole allowed for every value inside it."""
    found = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in found:
            found[key] = {name: _or_hole(_opened(part)) for name, part in found[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _or_hole(_opened(found[key]))
    if "prefixItems" in found:
        found["prefixItems"] = [_or_hole(_opened(part)) for part in found["prefixItems"]]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in found:
            found[key] = [_opened(part) for part in found[key]]
    return found
