"""YAML text -> plain values, each with its line and column.

Built on ruamel's event stream (YAML 1.2: `no` is a word, `1e-3` a number), so that hostile documents end
in a message at a line: duplicate keys, anchors that contain themselves or explode, bottomless nesting.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from archsearch.spec.errors import Issue, Path, SpecError, dotted, issues_of, shown

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000
MAX_DIGITS = 40

Mark = tuple[int, int]
T = TypeVar("T")


@dataclass
class _Node:
    """A value as written. `items` is a list of nodes or a mapping key -> (key's mark, node)."""

    mark: Mark
    scalar: Any = None
    sequence: list[_Node] | None = None
    mapping: dict[str, tuple[Mark, _Node]] | None = None
    open: bool = False


@dataclass
class _Frame:
    node: _Node
    key: tuple[str, Mark] | None = None
    merges: list[_Node] = field(default_factory=list)
    """What `<<` names: complete only when the mapping that names it closes."""


class Source:
    """One YAML document: its plain `value`, and where each part of it stands."""

    def __init__(self, name: str, text: str):
        self.name = name
        if len(text) > MAX_BYTES:
            raise self.at((1, 1), (), f"larger than {MAX_BYTES >> 20} MiB")
        self._root = _Builder(self).build(text)
        self._count = 0
        self.value: Any = self._plain(self._root, ())

    @classmethod
    def read(cls, path: str | FilePath) -> Source:
        """Read a file. Raises `SpecError` when it is missing, unreadable, not UTF-8 or not YAML."""
        name = str(path)
        try:
            data = FilePath(path).read_bytes()
        except FileNotFoundError:
            raise SpecError(f"{name}:1:1: : no such file") from None
        except IsADirectoryError:
            raise SpecError(f"{name}:1:1: : is a folder; expected a YAML file") from None
        except OSError as error:
            raise SpecError(f"{name}:1:1: : cannot be read: {error.strerror}") from None
        try:
            return cls(name, data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            before = data[: error.start]
            line = before.count(b"\n") + 1
            column = error.start - (before.rfind(b"\n") + 1) + 1
            byte = data[error.start]
            raise SpecError(f"{name}:{line}:{column}: : not UTF-8 text (byte 0x{byte:02x})") from None

    def at(self, mark: Mark, path: Path, message: str) -> SpecError:
        return SpecError(
            f"{self.name}:{mark[0]}:{mark[1]}: {dotted(path)}: {message}", [Issue(path, message)]
        )

    def locate(self, path: Path) -> Mark:
        """Line and column (from 1) of the longest part of `path` that the document holds.

        A mapping's entry is located at its key.
        """
        mark, node = self._root.mark, self._root
        for part in path:
            # A branch may be a layer or a list of one layer: a path does not tell which was written.
            if node.sequence is not None and len(node.sequence) == 1 and isinstance(part, str):
                node = node.sequence[0]
            if node.mapping is not None and str(part) in node.mapping:
                mark, node = node.mapping[str(part)]
            elif node.sequence is not None and isinstance(part, int) and part < len(node.sequence):
                node = node.sequence[part]
                mark = node.mark
            else:
                break
        return mark

    def error(self, issues: list[Issue], where: Callable[[Path], Path] = lambda path: path) -> SpecError:
        """The error for `issues`, its text the one that stands first in the file.

        where: maps the path of an issue to a path in this document, where the two differ.
        """
        first = min(issues, key=lambda issue: self.locate(where(issue.path)))
        line, column = self.locate(where(first.path))
        text = f"{self.name}:{line}:{column}: {dotted(where(first.path))}: {first.message}"
        return SpecError(text, issues)

    def check(
        self,
        cls: type[BaseModel],
        make: Callable[[], T],
        where: Callable[[Path], Path] = lambda path: path,
    ) -> T:
        """`make()`, with pydantic's errors turned into a located `SpecError`."""
        try:
            return make()
        except ValidationError as error:
            raise self.error(issues_of(error, cls), where) from None

    def _plain(self, node: _Node, path: Path) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            # At the key under which they do: the value itself stands where its anchor is.
            raise self.at(
                self.locate(path[:1]), path[:1], f"anchors expand to more than {MAX_VALUES:,} values"
            )
        if len(path) > MAX_DEPTH:
            raise self.at(node.mark, path[:4], f"nested deeper than {MAX_DEPTH} levels")
        if node.sequence is not None:
            return [self._plain(item, (*path, i)) for i, item in enumerate(node.sequence)]
        if node.mapping is not None:
            return {key: self._plain(item, (*path, key)) for key, (_, item) in node.mapping.items()}
        return node.scalar


class _Builder:
    """Event stream -> nodes, refusing what a spec has no use for."""

    def __init__(self, source: Source):
        self.source = source
        self.anchors: dict[str, _Node] = {}
        self.frames: list[_Frame] = []
        self.root: _Node | None = None
        self.values = 0

    def build(self, text: str) -> _Node:
        yaml = YAML(typ="safe", pure=True)
        documents = 0
        try:
            for event in yaml.parse(text):
                if isinstance(event, DocumentStartEvent):
                    documents += 1
                    if event.version or event.tags:
                        raise self.source.at(
                            _mark(event), (), "% directives are not supported; YAML 1.2 is read"
                        )
                if documents > 1:
                    raise self.source.at(_mark(event), (), "a second document; expected one")
                self._take(event, yaml.resolver)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            raise self.source.at(place, (), f"not valid YAML: {error.problem or error.context}") from None
        except ReaderError as error:
            before = text[: error.position]
            place = before.count("\n") + 1, error.position - before.rfind("\n")
            message = f"not valid YAML: character {chr(error.character)!r} is not text"
            raise self.source.at(place, (), message) from None
        except YAMLError as error:
            raise self.source.at((1, 1), (), f"not valid YAML: {' '.join(str(error).split())}") from None
        if self.root is None:
            raise self.source.at((1, 1), (), "an empty file")
        return self.root

    def _take(self, event: Any, resolver: Any) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self.source.at(_mark(event), (), f"more than {MAX_VALUES:,} values")
        if isinstance(event, ScalarEvent):
            self._place(event, _Node(_mark(event), scalar=self._scalar(event, resolver)))
        elif isinstance(event, AliasEvent):
            self._alias(event)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            if event.tag is not None:
                raise self.source.at(_mark(event), (), f"tag {event.tag} is not supported")
            if len(self.frames) >= MAX_DEPTH:
                raise self.source.at(_mark(event), (), f"nested deeper than {MAX_DEPTH} levels")
            mapping = isinstance(event, MappingStartEvent)
            node = _Node(_mark(event), open=True)
            if mapping:
                node.mapping = {}
            else:
                node.sequence = []
            self._place(event, node)
            self.frames.append(_Frame(node))
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            self._close()

    def _alias(self, event: AliasEvent) -> None:
        node = self.anchors.get(event.anchor)
        if node is None:
            raise self.source.at(_mark(event), (), f"alias *{event.anchor} of an unknown anchor")
        if node.open:
            raise self.source.at(_mark(event), (), f"anchor &{event.anchor} contains itself")
        self._place(event, node)

    def _place(self, event: Any, node: _Node) -> None:
        """Put a finished or just opened node where the document has it."""
        anchor = getattr(event, "anchor", None)
        if anchor and not isinstance(event, AliasEvent):
            self.anchors[anchor] = node
        if not self.frames:
            self.root = node
            return
        frame = self.frames[-1]
        holder = frame.node
        if holder.sequence is not None:
            holder.sequence.append(node)
            return
        assert holder.mapping is not None
        if frame.key is None:
            frame.key = (self._key(event, node), _mark(event))
            return
        key, mark = frame.key
        frame.key = None
        if key == "<<":
            frame.merges.append(node)
            return
        if key in holder.mapping:
            line = holder.mapping[key][0][0]
            raise self.source.at(mark, (key,), f"duplicate key {key!r}, first given on line {line}")
        holder.mapping[key] = (mark, node)

    def _key(self, event: Any, node: _Node) -> str:
        if not isinstance(event, ScalarEvent):
            raise self.source.at(_mark(event), (), "a key must be a word, not a list or a mapping")
        return str(event.value)

    def _close(self) -> None:
        frame = self.frames.pop()
        frame.node.open = False
        named = [part for node in frame.merges for part in (node.sequence or [node])]
        for merged in named:
            if merged.mapping is None or frame.node.mapping is None:
                raise self.source.at(merged.mark, (), "<< merges mappings only")
            for key, entry in merged.mapping.items():
                frame.node.mapping.setdefault(key, entry)

    def _scalar(self, event: ScalarEvent, resolver: Any) -> Any:
        if event.tag is not None and str(event.tag) not in ("!", "tag:yaml.org,2002:str"):
            raise self.source.at(_mark(event), (), f"tag {event.tag} is not supported")
        if not event.implicit[0]:
            return event.value
        kind = str(resolver.resolve(ScalarNode, event.value, event.implicit)).rsplit(":", 1)[-1]
        try:
            return _READERS.get(kind, str)(event.value)
        except ValueError:
            raise self.source.at(_mark(event), (), f"cannot be read: {shown(event.value)}") from None


def _mark(event: Any) -> Mark:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _integer(text: str) -> int:
    text = text.replace("_", "")
    if len(text) > MAX_DIGITS:
        raise ValueError("too many digits")
    if text.lower().lstrip("+-").startswith(("0x", "0o", "0b")):
        return int(text, 0)
    return int(text, 10)


def _float(text: str) -> float:
    text = text.replace("_", "").lower()
    if text.lstrip("+-") in (".inf", ".nan"):
        value = math.inf if text.endswith("inf") else math.nan
        return -value if text.startswith("-") else value
    return float(text)


_READERS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": _float,
    # Dates are words here: a spec's name may look like one.
    "timestamp": str,
}
