"""Entries -> the expanded graph: repeats unrolled, defaults and derived values filled in, sharing resolved.

Every node has a stable path, which is also its module's name: `layers.3`, `layers.3.branches.1.0`.
Building the graph is where a spec proves legal: whatever builds a graph compiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from archsearch.spec.entries import Entry, Parallel, Pattern, Repeat, Share
from archsearch.spec.errors import FieldError, Issue, Path, nearest
from archsearch.spec.layers import Layer
from archsearch.spec.merges import Merge
from archsearch.spec.pattern import MAX_NESTING

MAX_LAYERS = 4096


@dataclass(frozen=True)
class Node:
    """One layer of the graph, with nothing left to derive.

    path: its name. source: where the spec says it. layer: its fields, resolved. norm, residual: the block
    around it. project: whether it has its own output projection (not so under a merge that shares one).
    branches, merge: of a parallel layer. owner: for a shared layer, the path of the node whose weights it
    uses.
    """

    path: str
    source: Path
    layer: Layer
    norm: str
    residual: bool
    project: bool = True
    branches: tuple[tuple[Node, ...], ...] = ()
    merge: Merge | None = None
    owner: str | None = None

    @property
    def kind(self) -> str:
        return self.layer.kind

    def walk(self) -> Iterator[Node]:
        yield self
        for branch in self.branches:
            for node in branch:
                yield from node.walk()

    def widths(self, d_model: int) -> tuple[int, ...]:
        """Widths of the features that the merge sees, one a branch."""
        return tuple(d_model if b[-1].project else b[-1].layer.inner_width(d_model) for b in self.branches)


class GraphError(ValueError):
    """A spec that cannot be built; `issue` says where and why."""

    def __init__(self, path: Path, message: str):
        super().__init__(message)
        self.issue = Issue(path, message)


@dataclass
class Expansion:
    """Expands the entries of one spec, keeping what sharing and the size limit need to know."""

    d_model: int
    defaults: Mapping[str, Layer]
    norm: str = "pre"
    named: dict[str, tuple[Path, Node | None]] = field(default_factory=dict)
    count: int = 0

    def stack(
        self, entries: tuple[Entry, ...], prefix: str, source: Path, in_branch: bool = False
    ) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for entry, where in self.unroll(entries, source):
            bare = in_branch and not nodes
            nodes.append(self.node(entry, f"{prefix}.{len(nodes)}", where, bare))
        return tuple(nodes)

    def unroll(self, entries: tuple[Entry, ...], source: Path) -> Iterator[tuple[Entry, Path]]:
        for i, entry in enumerate(entries):
            where = (*source, i) if len(entries) > 1 or not _single(source) else source
            if isinstance(entry, Repeat):
                self._check_size(entry.repeat, (*where, "repeat"), f"{entry.repeat:,} repeats expand to")
                for _ in range(entry.repeat):
                    yield from self.unroll(entry.layers, (*where, "layers"))
            elif isinstance(entry, Pattern):
                for item in entry.entries():
                    yield item, (*where, "pattern")
            else:
                yield entry, where

    def node(self, entry: Entry, path: str, source: Path, bare: bool) -> Node:
        """bare: the first layer of a branch, which by default has neither norm nor residual."""
        self.count += 1
        self._check_size(0, source, "the layers expand to")
        if isinstance(entry, Share):
            return self._shared(entry, path, source)
        assert isinstance(entry, Layer)
        default = self.defaults.get(entry.kind)
        layer = _with_defaults(entry, default)
        at = _Locator(entry, default, (*source, entry.kind))
        norm = layer.norm or ("none" if bare else self.norm)
        residual = layer.residual if layer.residual is not None else not bare
        self._open(layer, (*source, entry.kind, "id"))
        try:
            layer = layer.resolve(self.d_model)
        except FieldError as error:
            raise GraphError(at(error.field), error.message) from None
        node = Node(path, source, layer, norm, residual)
        if isinstance(layer, Parallel):
            node = self._parallel(node, layer, at)
        if layer.id is not None:
            self.named[layer.id] = (self.named[layer.id][0], node)
        return node

    def _parallel(self, node: Node, layer: Parallel, at: _Locator) -> Node:
        if len(layer.branches) < 2:
            found = "none" if not layer.branches else "one"
            raise GraphError(at("branches"), f"a parallel needs at least 2 branches, found {found}")
        if node.path.count("branches") >= MAX_NESTING:
            # Also what ends a default of `parallel` whose branches hold a parallel that takes that default.
            raise GraphError(at("branches"), f"parallel branches nested deeper than {MAX_NESTING}")
        branches = []
        for i, entries in enumerate(layer.branches):
            source = (*at("branches"), i)
            branches.append(self.stack(entries, f"{node.path}.branches.{i}", source, in_branch=True))
        merge: Merge = layer.merge
        if merge.projection == "shared":
            branches = [self._unprojected(branch) for branch in branches]
        node = replace(node, branches=tuple(branches))
        families = tuple({b[0].kind, b[0].layer.family} for b in branches)
        try:
            merge = merge.resolve(self.d_model, node.widths(self.d_model), families)
        except FieldError as error:
            where = (*at("merge"), merge.kind, error.field) if error.field else at("merge")
            raise GraphError(where, error.message) from None
        return replace(node, merge=merge)

    def _unprojected(self, branch: tuple[Node, ...]) -> tuple[Node, ...]:
        """The branch with its output projection left to the merge; it must be one bare layer."""
        last = branch[-1]
        wrapped = last.residual or last.norm in ("post", "sandwich")
        if len(branch) > 1 or wrapped or last.owner or last.branches or last.layer.id:
            raise GraphError(
                last.source,
                "projection: shared takes branches of one bare layer each "
                "(no list, no residual, no norm after it, no id, not shared, not parallel)",
            )
        return (replace(last, project=False),)

    def _open(self, layer: Layer, source: Path) -> None:
        """Note the layer's id as being defined; two different layers may not have one name."""
        if layer.id is None:
            return
        if layer.id in self.named and self.named[layer.id][0] != source:
            raise GraphError(source, f"id {layer.id!r} is taken by another layer")
        self.named[layer.id] = (source, None)

    def _shared(self, entry: Share, path: str, source: Path) -> Node:
        where = (*source, "share")
        if entry.share not in self.named:
            hint = nearest(entry.share, self.named) if self.named else "; no layer above it has an id"
            raise GraphError(where, f"unknown id {entry.share!r}{hint}")
        owner = self.named[entry.share][1]
        if owner is None:
            raise GraphError(where, f"a cycle: {entry.share!r} is shared inside itself")
        # The shared layers run again: parallels that share parallels double at each level.
        self._check_size(sum(1 for _ in owner.walk()), where, "the layers expand to")
        self.count += sum(1 for _ in owner.walk()) - 1
        return replace(owner, path=path, source=source, owner=owner.path)

    def _check_size(self, more: int, source: Path, what: str) -> None:
        if self.count + more > MAX_LAYERS:
            raise GraphError(source, f"{what} more than {MAX_LAYERS:,} layers")


class _Locator:
    """Field of a layer -> where the user wrote it: at the layer, in `defaults`, or nowhere (the layer)."""

    def __init__(self, entry: Layer, default: Layer | None, source: Path):
        self.entry, self.default, self.source = entry, default, source

    def __call__(self, name: str) -> Path:
        if (
            name not in self.entry.model_fields_set
            and self.default is not None
            and name in self.default.model_fields_set
        ):
            return ("defaults", self.entry.kind, name)
        return (*self.source, name)


def _with_defaults(layer: Layer, default: Layer | None) -> Layer:
    if default is None:
        return layer
    said = layer.model_fields_set
    ways = [way for way in layer.alternatives if way & said]
    missing = default.model_fields_set - said - set().union(*ways)
    return layer.model_copy(update={name: getattr(default, name) for name in missing})


def _single(source: Path) -> bool:
    """Whether `source` is a branch, whose one layer may stand there without a list around it."""
    return len(source) >= 2 and source[-2] == "branches"
