"""Entries -> the expanded graph: repeats unrolled, defaults and derived values filled in, sharing resolved.

Every node has a stable path, which is also its module's name: `layers.3`, `layers.3.branches.1.0`.
Building the graph is where a spec proves legal: whatever builds a graph compiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from archsearch.spec.entries import Entry, Parallel, Pattern, Repeat, Sequential, Share
from archsearch.spec.errors import FieldError, Issue, Path, nearest
from archsearch.spec.layers import Layer
from archsearch.spec.merges import Merge
from archsearch.spec.pattern import MAX_NESTING

MAX_LAYERS = 4096
EMBEDDING = "embedding"
"""The stream that every layer may read as an input: what entered the stack."""


@dataclass(frozen=True)
class Node:
    """One layer of the graph, with nothing left to derive.

    path: its name. source: where the spec says it. layer: its fields, resolved. norm, residual: the block
    around it. project: whether it has its own output projection (not so under a merge that shares one).
    branches, merge: of a parallel layer; a sequential layer has one branch and no merge. owner: for a shared
    layer, the path of the node whose weights it uses. lora: rank of this use's own low-rank term. inputs:
    further streams that it reads, `embedding` or paths. reads: role -> path of the layer read in that role.
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
    lora: int | None = None
    inputs: tuple[str, ...] = ()
    reads: Mapping[str, str] = field(default_factory=dict)

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
        inputs = tuple(self._input(name, at("inputs")) for name in layer.inputs)
        read = {
            role: self._named(getattr(layer, name), at(name))
            for role, name in layer.references.items()
            if getattr(layer, name) is not None
        }
        try:
            self._check_block(layer, norm)
            _check_roles(layer, read)
            layer = layer.reading({role: source.layer for role, source in read.items()}, self.d_model)
            layer = layer.resolve(self.d_model)
            _check_lora(layer, layer.lora, self.d_model)
        except FieldError as error:
            raise GraphError(at(error.field), error.message) from None
        reads = {role: source.path for role, source in read.items()}
        node = Node(path, source, layer, norm, residual, lora=layer.lora, inputs=inputs, reads=reads)
        if isinstance(layer, Parallel):
            node = self._parallel(node, layer, at)
        elif isinstance(layer, Sequential):
            node = self._sequential(node, layer, at)
        if layer.id is not None:
            self.named[layer.id] = (self.named[layer.id][0], node)
        return node

    def _parallel(self, node: Node, layer: Parallel, at: _Locator) -> Node:
        if len(layer.branches) < 2:
            found = "none" if not layer.branches else "one"
            raise GraphError(at("branches"), f"a parallel needs at least 2 branches, found {found}")
        _check_nesting(node, at("branches"))
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

    def _sequential(self, node: Node, layer: Sequential, at: _Locator) -> Node:
        if not layer.layers:
            raise GraphError(at("layers"), "a sequential needs at least one layer, found none")
        _check_nesting(node, at("layers"))
        inner = self.stack(layer.layers, f"{node.path}.layers", at("layers"), in_branch=True)
        return replace(node, branches=(inner,))

    def _unprojected(self, branch: tuple[Node, ...]) -> tuple[Node, ...]:
        """The branch with its output projection left to the merge; it must be one bare layer."""
        last = branch[-1]
        wrapped = last.residual or last.norm in ("post", "sandwich")
        if len(branch) > 1 or wrapped or last.owner or last.branches:
            raise GraphError(
                last.source,
                "projection: shared takes branches of one bare layer each "
                "(no list, no residual, no norm after it, not shared, not parallel or sequential)",
            )
        last = replace(last, project=False)
        if last.layer.id is not None:
            self.named[last.layer.id] = (self.named[last.layer.id][0], last)
        return (last,)

    def _open(self, layer: Layer, source: Path) -> None:
        """Note the layer's id as being defined; two different layers may not have one name."""
        if layer.id is None:
            return
        if layer.id == EMBEDDING:
            raise GraphError(source, f"{EMBEDDING!r} names what enters the stack; expected another id")
        if layer.id in self.named and self.named[layer.id][0] != source:
            raise GraphError(source, f"id {layer.id!r} is taken by another layer")
        self.named[layer.id] = (source, None)

    def _shared(self, entry: Share, path: str, source: Path) -> Node:
        where = (*source, "share")
        owner = self._named(entry.share, where)
        if not owner.project:
            raise GraphError(
                where, f"{entry.share!r} has no output projection: its merge has the one it shares"
            )
        try:
            _check_lora(owner.layer, entry.lora, self.d_model)
        except FieldError as error:
            raise GraphError((*source, error.field), error.message) from None
        # The shared layers run again: parallels that share parallels double at each level.
        self._check_size(sum(1 for _ in owner.walk()), where, "the layers expand to")
        self.count += sum(1 for _ in owner.walk()) - 1
        return replace(owner, path=path, source=source, owner=owner.path, lora=entry.lora)

    def _named(self, name: str, where: Path) -> Node:
        """The layer above that has this id."""
        if name not in self.named:
            hint = nearest(name, self.named) if self.named else "; no layer above it has an id"
            raise GraphError(where, f"unknown id {name!r}{hint}")
        node = self.named[name][1]
        if node is None:
            raise GraphError(where, f"a cycle: {name!r} is used inside itself")
        return node

    def _input(self, name: str, where: Path) -> str:
        return name if name == EMBEDDING else self._named(name, where).path

    def _check_block(self, layer: Layer, norm: str) -> None:
        if layer.inputs and not layer.takes_inputs:
            raise FieldError("inputs", f"{layer.kind} takes no further inputs; give them to the layers in it")
        if layer.inputs and norm == "entry":
            raise FieldError("inputs", "norm: entry norms the stream alone; expected pre, sandwich or none")

    def _check_size(self, more: int, source: Path, what: str) -> None:
        if self.count + more > MAX_LAYERS:
            raise GraphError(source, f"{what} more than {MAX_LAYERS:,} layers")


def _check_nesting(node: Node, where: Path) -> None:
    """Also ends a default of `parallel` whose branches hold a parallel that takes that default."""
    if node.path.count("branches") + node.path.count("layers") > MAX_NESTING:
        raise GraphError(where, f"layers nested deeper than {MAX_NESTING}")


def _check_roles(layer: Layer, read: Mapping[str, Node]) -> None:
    for role, source in read.items():
        if role not in source.layer.tells:
            raise FieldError(
                layer.references[role],
                f"{source.kind} has no {role} to read; expected the id of a layer that has",
            )


def _check_lora(layer: Layer, lora: int | None, d_model: int) -> None:
    if lora is not None and not layer.projections(d_model):
        raise FieldError("lora", f"{layer.kind} has no input projection to adapt")


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
