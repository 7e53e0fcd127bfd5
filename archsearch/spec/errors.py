"""Errors that a person reads: one line saying where, what was found, and what was expected.

Validation happens in nested steps (a model, its layers, their fields). Each step raises pydantic's own
`ValidationError` with the path it knows; outer steps prepend theirs, so that the loader can turn the
whole path into a line and a column.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from types import UnionType
from typing import Any, NamedTuple, NoReturn, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

Path = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

OURS = "archsearch"
"""`type` of errors whose message is already final."""


class Issue(NamedTuple):
    """One mistake: its path in the document and what is wrong there."""

    path: Path
    message: str


class SpecError(ValueError):
    """A mistake in a user's file. Its text is one line, `file:line:col: path: message`.

    `issues` holds every mistake found; the text shows the one that comes first in the file.
    """

    def __init__(self, text: str, issues: Sequence[Issue] = ()):
        super().__init__(text)
        self.issues = tuple(issues)


class FieldError(ValueError):
    """A field of a layer or a merge that cannot hold, found when its width is known."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field
        self.message = message


def dotted(path: Path) -> str:
    """`layers.0.heads`"""
    return ".".join(map(_in_line, path))


def quoted(words: Iterable[object]) -> str:
    return ", ".join(map(_in_line, words))


def _in_line(word: object) -> str:
    """What would break the line is shown as Python writes it."""
    return text if (text := str(word)).isprintable() else repr(text)


def nearest(word: object, known: Iterable[str]) -> str:
    """A hint to append to "unknown ...": the nearest known word, or the whole list when none is near."""
    words = sorted(known)
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of: {quoted(words)}" if words else ""


def shown(value: Any, limit: int = 40) -> str:
    """A short, one-line picture of what was found."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return f"a mapping with keys {quoted(list(value)[:4])}" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def refuse(path: Path, message: str, found: Any = None) -> NoReturn:
    """Raise a one-issue `ValidationError` at `path`, relative to the value being validated."""
    raise _combine([(path, message, found)])


def refuse_all(issues: Iterable[Issue]) -> NoReturn:
    raise _combine([(issue.path, issue.message, None) for issue in issues])


def validate(cls: type[M], value: Any, path: Path = ()) -> M:
    """`cls.model_validate` with messages for people and `path` put before every location."""
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        found = [((*path, *e["loc"]), explain(e, cls), e["input"]) for e in error.errors()]
    raise _combine(found)


def under(key: str | int, parse: Callable[[Any], T], value: Any) -> T:
    """`parse(value)`, with `key` put before the paths of its errors (their messages are final)."""
    try:
        return parse(value)
    except ValidationError as error:
        found = [((key, *e["loc"]), e["msg"], e["input"]) for e in error.errors()]
    raise _combine(found)


def issues_of(error: ValidationError, cls: type[BaseModel]) -> list[Issue]:
    return [Issue(e["loc"], explain(e, cls)) for e in error.errors()]


def explain(error: ErrorDetails, cls: type[BaseModel]) -> str:
    """One line for one of pydantic's errors, with the nearest word where a word was expected."""
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == OURS:
        return error["msg"]
    if kind == "extra_forbidden":
        owner = _model_at(cls, error["loc"][:-1])
        known = [f.alias or name for name, f in owner.model_fields.items()] if owner else []
        return f"unknown key {error['loc'][-1]!r}{nearest(error['loc'][-1], known)}"
    if kind == "missing" and isinstance(error["loc"][-1], str):
        return f"missing key {error['loc'][-1]!r}"
    if kind == "literal_error":
        words = [w.strip("'") for w in context["expected"].replace(" or ", ", ").split(", ")]
        return f"unknown value {shown(found)}{nearest(found, words)}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {shown(found)}"
    bound = next((sign for name, sign in _BOUNDS.items() if kind == name), None)
    if bound is not None:
        limit = context.get(bound[1])
        return f"must be {bound[0]} {limit}, found {shown(found)}"
    if kind == "missing":
        return f"missing the value at index {error['loc'][-1]}, found {shown(found)}"
    if kind == "too_long":
        return f"takes at most {context['max_length']}, found {shown(found)}"
    if kind == "string_pattern_mismatch":
        return f"expected a word of the form {context['pattern']}, found {shown(found)}"
    if kind in ("too_short", "string_too_short"):
        return f"needs at least {context['min_length']}, found {shown(found)}"
    if kind == "value_error":
        return str(context["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, found {shown(found)}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a word",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}

_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}


def _combine(found: Iterable[tuple[Path, str, Any]]) -> ValidationError:
    details = [
        InitErrorDetails(
            # The message goes in as context: the template language would read braces in it.
            type=PydanticCustomError(OURS, "{text}", {"text": message}),
            loc=path,
            input=value,
        )
        for path, message, value in found
    ]
    return ValidationError.from_exception_data(OURS, details)


def _model_at(cls: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that a path ends in, following field annotations; None where they do not tell."""
    here: type[BaseModel] | None = cls
    for part in path:
        if here is None:
            return None
        field = here.model_fields.get(str(part))
        if field is None:
            continue  # an index or a union's tag: stay on the model it was reached from
        here = model_in(field.annotation)
    return here


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, list, tuple, dict):
        models = [m for m in map(model_in, get_args(annotation)) if m is not None]
        return models[0] if models else None
    return None
