"""What `archsearch show` prints: parameters, FLOPs and memory of a model; layers, with equal ones folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from archsearch.spec.cost import Cost, LayerCost, ModelCost
from archsearch.spec.entries import layer_kinds
from archsearch.spec.model import ModelSpec
from archsearch.spec.quantities import bytes_text, count_text

if TYPE_CHECKING:
    from archsearch.experiment import Experiment

CONTEXTS = (4 * 1024, 32 * 1024, 256 * 1024)
"""Context lengths that a model is summed up at, in tokens."""
MAX_PERIOD = 64
"""The longest sequence of layers that is looked for again."""

Costs = Mapping[int, ModelCost]
"""Cost of one model by context length."""


def parse_contexts(texts: Iterable[str]) -> tuple[int, ...]:
    """Context lengths as people write them, `4096` or `4k,32k` (k is 1,024). Raises ValueError."""
    found: dict[int, None] = {}
    for text in ",".join(texts).split(","):
        digits = text.strip().lower()
        unit = 1024 if digits.endswith("k") else 1
        digits = digits.removesuffix("k")
        if not digits.isdecimal():
            raise ValueError(f"--context: expected tokens, such as 4096 or 4k,32k, found {text!r}")
        found[int(digits) * unit] = None
    return tuple(found)


def default_contexts(spec: ModelSpec) -> tuple[int, ...]:
    """`CONTEXTS`, as far as the model's learned positions reach."""
    positions = spec.embedding.positions
    if positions is None:
        return CONTEXTS
    return tuple(c for c in CONTEXTS if c <= positions.learned) or (positions.learned,)


def kv_bytes(cost: ModelCost) -> int:
    """Bytes of keys and values (of attention layers and of merges that attend); other state is recurrent."""
    return sum(map(_kv_bytes, cost.layers))


def _kv_bytes(layer: LayerCost) -> int:
    inner = sum(_kv_bytes(one) for branch in layer.branches for one in branch)
    if layer.merge is not None:
        inner += layer.merge[1].state_bytes
    if not layer.branches and layer_kinds()[layer.kind].family == "attention":
        inner += layer.cost.state_bytes
    return inner


def as_json(spec: ModelSpec, costs: Costs, dtype: str) -> dict[str, Any]:
    """Everything about the model at the first context, and what depends on the context at each."""
    context, cost = next(iter(costs.items()))
    return {
        "name": spec.name,
        "hash": spec.hash,
        **cost.total.as_dict(),
        "context": context,
        "dtype": dtype,
        "contexts": {str(c): _at_context(one) for c, one in costs.items()},
        "d_model": spec.d_model,
        "vocab": spec.vocab,
        "embedding": cost.embedding.as_dict(),
        "head": cost.head.as_dict(),
        "layers": [layer.as_dict() for layer in cost.layers],
    }


def _at_context(cost: ModelCost) -> dict[str, int]:
    kv, total = kv_bytes(cost), cost.total
    return {
        "flops_per_token": round(total.flops),
        "state_bytes": total.state_bytes,
        "kv_bytes": kv,
        "recurrent_bytes": total.state_bytes - kv,
    }


def print_summary(spec: ModelSpec, costs: Costs, dtype: str) -> None:
    """The model in a few lines, a row a context, and a row a layer or run of layers."""
    console = Console()
    total = next(iter(costs.values())).total
    console.print(f"[b]{spec.name}[/]  d_model {spec.d_model}, vocabulary {spec.vocab:,}, hash {spec.hash}")
    console.print(f"parameters {_count(total.params)}, active for a token {_count(total.active_params)}")
    console.print(_context_table(costs, dtype))
    console.print(_layer_table(*next(iter(costs.items()))))


def training_line(experiment: Experiment) -> str:
    """How an experiment trains its model, budgets and rules worked out."""
    from archsearch.experiment.rules import training_flops

    training = experiment.training
    tokens = count_text(training.steps * training.tokens_per_step)
    flops = count_text(training_flops(experiment.arch, training))
    return (
        f"training {tokens} tokens in {training.steps:,} steps, {flops} FLOPs, learning rate {training.lr:g}"
    )


def _count(value: int) -> str:
    return f"{value:,}" if value < 1000 else f"{value:,} ({count_text(value)})"


def _context_table(costs: Costs, dtype: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, caption=f"bytes a sequence, in {dtype}", caption_justify="left"
    )
    for name in ("context", "FLOPs/token", "KV cache", "recurrent state", "KV + state"):
        table.add_column(name, justify="right")
    for context, cost in costs.items():
        kv, state = kv_bytes(cost), cost.total.state_bytes
        flops = f"{round(cost.total.flops):,}"
        table.add_row(f"{context:,}", flops, *map(_bytes, (kv, state - kv, state)))
    return table


def _layer_table(context: int, cost: ModelCost) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("layer", "total")
    table.add_column("kind")
    names = ("parameters", "FLOPs/token", f"state @ {context:,}")
    for name, total in zip(names, _cells(cost.total), strict=True):
        # Where the terminal is narrow, names give way, not numbers.
        table.add_column(name, total, justify="right", no_wrap=True)
    table.add_row("embedding", "", *_cells(cost.embedding))
    for row in _rows(cost.layers):
        table.add_row(*row)
    table.add_row("head", "", *_cells(cost.head))
    return table


@dataclass(frozen=True)
class Run:
    """`layers`, `count` times in a row, with the same costs each time; `last` is the last of them all."""

    layers: tuple[LayerCost, ...]
    count: int
    last: LayerCost

    @property
    def cost(self) -> Cost:
        once = _sum(self.layers)
        return Cost(
            once.params * self.count,
            once.active_params * self.count,
            once.flops * self.count,
            once.state_bytes * self.count,
        )


def fold(layers: Sequence[LayerCost]) -> list[Run]:
    """The layers as runs: at each place the sequence whose repeats, right after it, save most rows."""
    numbers: dict[Any, int] = {}
    keys = [numbers.setdefault(_key(layer), len(numbers)) for layer in layers]
    runs = []
    start = 0
    while start < len(layers):
        longest = min(MAX_PERIOD, (len(layers) - start) // 2)
        lengths = {period: _repeats(keys, start, period) for period in range(1, longest + 1)}
        period = max(lengths, key=lambda p: p * (lengths[p] - 1), default=1)
        count = lengths.get(period, 1)
        period = period if count > 1 else 1
        end = start + period * count
        runs.append(Run(tuple(layers[start : start + period]), count, layers[end - 1]))
        start = end
    return runs


def _repeats(keys: Sequence[int], start: int, period: int) -> int:
    """How often the `period` keys from `start` on stand there one after the other."""
    once = keys[start : start + period]
    count = 1
    while keys[start + count * period : start + (count + 1) * period] == once:
        count += 1
    return count


def _key(layer: LayerCost) -> Any:
    """Equal for layers that read the same in the table."""
    branches = tuple(tuple(map(_key, branch)) for branch in layer.branches)
    return layer.kind, layer.cost, branches, layer.merge


def _rows(layers: Sequence[LayerCost], depth: int = 0, within: str = "") -> Iterator[tuple[str, ...]]:
    """Rows of a stack. A run's row is the sum of its layers; the rows indented below it are of the first.

    within: path of the layer that holds the stack; names leave it out.
    """
    for run in fold(layers):
        first = run.layers[0]
        name = "  " * depth + first.path.removeprefix(f"{within}.")
        if run.count > 1:
            name += f"-{run.last.path.rsplit('.', 1)[1]}"
        if len(run.layers) == 1:
            kind = first.kind if run.count == 1 else f"{first.kind} x{run.count}"
            yield name, kind, *_cells(run.cost)
            for branch in first.branches:
                yield from _rows(branch, depth + 1, first.path)
            if first.merge is not None:
                yield f"{'  ' * (depth + 1)}merge", first.merge[0], *_cells(first.merge[1])
        else:
            yield name, f"{len(run.layers)} layers x{run.count}", *_cells(run.cost)
            yield from _rows(run.layers, depth + 1, within)


def _sum(layers: Iterable[LayerCost]) -> Cost:
    return sum((layer.cost for layer in layers), Cost())


def _cells(cost: Cost) -> tuple[str, str, str]:
    return f"{cost.params:,}", _flops(cost), _bytes(cost.state_bytes)


def _flops(cost: Cost) -> str:
    return count_text(cost.flops) if cost.flops else "-"


def _bytes(value: int) -> str:
    return bytes_text(value) if value else "-"
