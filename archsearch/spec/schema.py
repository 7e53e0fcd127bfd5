"""JSON Schema of model specs, for editors: completion, hover texts and red lines while a spec is written.

The schema says what each key may hold. What depends on several keys at once (head counts that divide a
width, names that exist, sizes) only the loader knows: whatever it takes validates here, not the reverse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from archsearch.spec.entries import Pattern, Repeat, Share, layer_kinds, symbols
from archsearch.spec.errors import model_in
from archsearch.spec.merges import MERGES
from archsearch.spec.model import ModelSpec
from archsearch.spec.vocabulary import TOKENIZERS

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENTRY: Schema = {"$ref": "#/$defs/entry"}
ENTRIES: Schema = {"type": "array", "items": ENTRY, "minItems": 1}
BRANCH: Schema = {"anyOf": [ENTRY, ENTRIES], "description": "A layer, or a list of layers."}
MERGE: Schema = {"$ref": "#/$defs/merge"}


def json_schema() -> Schema:
    """Schema (draft 2020-12) of a model spec, with every layer kind and merge that is defined."""
    defs: Schema = {}
    root = of_model(ModelSpec, defs)
    properties = root["properties"]
    properties["tokenizer"] = described({"enum": [*TOKENIZERS, None]}, properties["tokenizer"])
    words = defs["NormSpec"]["properties"]["kind"]["enum"]
    properties["norm"] = described({"anyOf": [{"enum": words}, properties["norm"]]}, properties["norm"])
    properties["layers"] = described(ENTRIES, properties["layers"])
    properties["pattern"] = described({"anyOf": [_pattern(), {"type": "null"}]}, properties["pattern"])
    kinds = {kind: _layer(kind, defs) for kind in layer_kinds()}
    defaults = table({kind: optional(fields) for kind, fields in kinds.items()})
    properties["defaults"] = described(defaults, properties["defaults"])
    merges = {kind: put(defs, f"merge.{kind}", of_model(merge, defs)) for kind, merge in MERGES.items()}
    defs["merge"] = one_of(merges, "How branches become one stream.")
    defs["entry"] = one_of(kinds, "A layer, a parallel, a repeat, a shared layer or a pattern.")
    for entry in (Repeat, Share, Pattern):
        defs["entry"]["anyOf"].append(put(defs, entry.__name__.lower(), _entry(entry, defs)))
    known = {"properties": {"tokenizer": {"type": "string"}}, "required": ["tokenizer"]}
    sized = {"properties": {"vocab_size": {"type": "integer"}}, "required": ["vocab_size"]}
    patterned = {"properties": {"pattern": {"type": "string"}}, "required": ["pattern"]}
    rules = [{"anyOf": [known, sized]}, {"oneOf": [{"required": ["layers"]}, patterned]}]
    return {"$schema": DIALECT, **root, "title": "archsearch model spec", "allOf": rules, "$defs": defs}


def _layer(kind: str, defs: Schema) -> Schema:
    schema = of_model(layer_kinds()[kind], defs)
    if kind == "parallel":
        fields = schema["properties"]
        fields["branches"] = described({"type": "array", "items": BRANCH}, fields["branches"])
        fields["merge"] = described(MERGE, fields["merge"])
    return put(defs, f"layer.{kind}", schema)


def _entry(cls: type[BaseModel], defs: Schema) -> Schema:
    schema = of_model(cls, defs)
    if "layers" in schema["properties"]:
        schema["properties"]["layers"] = described(ENTRIES, schema["properties"]["layers"])
    if "pattern" in schema["properties"]:
        schema["properties"]["pattern"] = _pattern()
    return schema


def _pattern() -> Schema:
    letters = "".join(re.escape(symbol) for symbol in symbols())
    kinds = ", ".join(f"{symbol} {kind}" for symbol, kind in sorted(symbols().items()))
    return {
        "type": "string",
        "pattern": rf"^[\s()|{letters}]*[{letters}][\s()|{letters}]*$",
        "description": f"A stack in shorthand: {kinds}, (a|b) parallel branches.",
    }


def one_of(kinds: dict[str, Schema], description: str) -> Schema:
    """A bare word, or `kind: {fields}`."""
    chosen = [{**table({kind: optional(fields)}), "required": [kind]} for kind, fields in kinds.items()]
    return {"description": description, "anyOf": [{"enum": list(kinds)}, *chosen]}


def table(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def optional(schema: Schema) -> Schema:
    """`kind:` with nothing after it is YAML's null, and means no fields."""
    return {"anyOf": [schema, {"type": "null"}]}


def put(defs: Schema, name: str, schema: Schema) -> Schema:
    defs[name] = schema
    return {"$ref": f"#/$defs/{name}"}


def of_model(cls: type[BaseModel], defs: Schema) -> Schema:
    """Pydantic's schema of a class, its parts moved to `defs`, each field with its docstring's sentence."""
    schema = cls.model_json_schema()
    for part in (model_in(field.annotation) for field in cls.model_fields.values()):
        if part is not None and part.__name__ in schema.get("$defs", {}):
            defs[part.__name__] = of_model(part, defs)
    schema.pop("$defs", None)
    schema.pop("title", None)
    schema["description"] = _summary(cls)
    sentences = _field_texts(cls)
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)
        if name in sentences:
            field["description"] = sentences[name]
        if not _is_json(field.get("default")):
            del field["default"]
    return schema


def described(schema: Schema, like: Schema) -> Schema:
    """`schema` with the description of what it stands for."""
    return {**schema, "description": like["description"]}


def _is_json(value: Any) -> bool:
    """Whether JSON can say it: it has no infinity."""
    if isinstance(value, list | tuple):
        return all(_is_json(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


def _summary(cls: type[BaseModel]) -> str:
    """The docstring's first paragraph, on one line."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _field_texts(cls: type[BaseModel]) -> dict[str, str]:
    """Field -> what the docstrings of the class and its bases say of it (`name, name: text.`)."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            found |= _texts_in(base.__doc__ or "", cls.model_fields)
    return found


def _texts_in(docstring: str, fields: Iterable[str]) -> dict[str, str]:
    text = " ".join(docstring.split())
    name = "(?:" + "|".join(map(re.escape, fields)) + ")"
    starts = list(re.finditer(rf"(?:^|(?<=\. ))({name}(?:, {name})*): ", text))
    ends = [match.start() for match in starts[1:]] + [len(text)] * bool(starts)
    return {
        field: text[match.end() : end].strip()
        for match, end in zip(starts, ends, strict=True)
        for field in match[1].split(", ")
    }
