"""Training on a CPU: archsearch's native paths against other implementations of the same layers.

Both sides of a comparison have the same shapes, live in the same process with the same settings and take
turns, step by step, so that load on the machine strikes both alike. A figure is the median over rounds of
the ratio of neighbouring steps, with its quartiles; `cpu` is the same of CPU seconds (all threads).

  mamba2     8 layers of Mamba-2 against transformers' Mamba2ForCausalLM, in chunks of 64 and of 256 tokens
  mamba1     one Mamba-1 layer against transformers' path without kernels, and against mambapy's scan
  deltanet   8 layers of gated DeltaNet against transformers' Qwen3.5, its layers alone and with their MLPs
  attention  8 layers of attention and SwiGLU against a plain GPT on scaled_dot_product_attention

A step is forward, cross-entropy, backward and fused AdamW; for a single layer forward and backward. `floor`
is what the step's own matrix products take when nothing else is done, and `GF/s` their rate within the step.

    python benchmarks/cpu_speed.py [mamba2] [mamba1] [deltanet] [attention] [--rounds 9] [--threads 2]

Prints a table and writes every figure to --json.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from archsearch.compiler import compile_model
from archsearch.spec import ModelSpec

Step = Callable[[], object]

D_MODEL, LAYERS, HEADS, HIDDEN, VOCAB = 256, 8, 4, 768, 1024
BATCH, LENGTH = 8, 512
LAYER_BATCH, LAYER_LENGTH = 2, 256
"""Shape for one Mamba-1 layer: what autograd through a loop over tokens still does in seconds."""


@dataclass(frozen=True)
class Comparison:
    """One implementation against another. `bar`: the largest ratio of times that counts as met."""

    name: str
    bar: float
    own: Step
    other: Step
    own_params: int
    other_params: int


@dataclass(frozen=True)
class Reading:
    """One step: wall-clock seconds, CPU seconds, pages faulted in."""

    wall: float
    cpu: float
    faults: int


def read(step: Step) -> Reading:
    faults, wall, cpu = _faults(), time.perf_counter(), time.process_time()
    step()
    return Reading(time.perf_counter() - wall, time.process_time() - cpu, _faults() - faults)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def alternate(steps: list[Step], rounds: int) -> list[list[Reading]]:
    """Readings by step, after two unmeasured rounds; every other round goes backwards."""
    for step in steps * 2:
        step()
    readings: list[list[Reading]] = [[] for _ in steps]
    for i in range(rounds):
        gc.collect()
        order = list(enumerate(steps))
        for j, step in order if i % 2 == 0 else reversed(order):
            readings[j].append(read(step))
    return readings


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


# Steps


def training_step(model: nn.Module, logits: Callable[[Tensor], Tensor]) -> Step:
    """One step of the optimiser on random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(VOCAB, (2, BATCH, LENGTH), generator=generator)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits(ids).flatten(0, 1), targets.flatten()).backward()
        optimiser.step()

    return step


def layer_step(layer: nn.Module) -> Step:
    """Forward and backward of one layer on (LAYER_BATCH, LAYER_LENGTH, D_MODEL)."""
    generator = torch.Generator().manual_seed(0)
    x_bld, dy_bld = torch.randn(2, LAYER_BATCH, LAYER_LENGTH, D_MODEL, generator=generator)
    x_bld.requires_grad_()
    leaves = [x_bld, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x_bld), leaves, dy_bld)


def own_model(layers: list[Any]) -> nn.Module:
    stack = [{"repeat": LAYERS, "layers": layers}]
    spec = {"d_model": D_MODEL, "vocab_size": VOCAB, "embedding": {"tied": True}, "layers": stack}
    return compile_model(ModelSpec.model_validate(spec))


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def models(name: str, bar: float, own: nn.Module, other: nn.Module, *, hf: bool = True) -> Comparison:
    steps = (
        training_step(own, own),
        training_step(other, (lambda ids: other(input_ids=ids, use_cache=False).logits) if hf else other),
    )
    return Comparison(name, bar, *steps, params(own), params(other))


# Comparisons


def mamba2() -> Iterator[Comparison]:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    for chunk, bar in ((64, 0.60), (256, 0.42)):
        torch.manual_seed(0)
        config = Mamba2Config(
            hidden_size=D_MODEL,
            num_hidden_layers=LAYERS,
            vocab_size=VOCAB,
            num_heads=2 * D_MODEL // 64,
            head_dim=64,
            state_size=64,
            n_groups=1,
            expand=2,
            chunk_size=chunk,
            tie_word_embeddings=True,
        )
        own = own_model([{"mamba2": {"d_state": 64, "head_dim": 64, "expand": 2, "groups": 1}}])
        yield models(f"mamba2 / transformers, chunks of {chunk}", bar, own, Mamba2ForCausalLM(config))


def mamba1() -> Iterator[Comparison]:
    from mambapy.mamba import MambaBlock
    from mambapy.mamba import MambaConfig as MambapyConfig
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    block: Any = own_model([{"mamba1": {"d_state": 16, "expand": 2}}]).layers[0]  # type: ignore[index]
    own = block.layer
    others = {
        "transformers, without kernels": (1 / 18, MambaMixer(MambaConfig(hidden_size=D_MODEL), 0)),
        "mambapy, parallel scan": (0.75, MambaBlock(MambapyConfig(D_MODEL, 1))),
    }
    for name, (bar, other) in others.items():
        yield Comparison(
            f"mamba1 layer / {name}", bar, layer_step(own), layer_step(other), params(own), params(other)
        )


def deltanet() -> Iterator[Comparison]:
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet, Qwen3_5RMSNorm

    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        hidden_size=D_MODEL,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        vocab_size=VOCAB,
        layer_types=["linear_attention"] * LAYERS,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        tie_word_embeddings=True,
    )
    layer = {"gated_deltanet": {"key_heads": 4, "value_heads": 8, "key_dim": 64, "value_dim": 64}}
    layer_class: Any = Qwen3_5GatedDeltaNet
    blocks = [(Qwen3_5RMSNorm(D_MODEL), layer_class(config, i)) for i in range(LAYERS)]
    yield models("deltanet / transformers, layers alone", 0.6, own_model([layer]), Stack(blocks), hf=False)
    own = own_model([layer, {"mlp": {"hidden": HIDDEN}}])
    yield models("deltanet + MLP / transformers Qwen3.5", 0.6, own, Qwen3_5ForCausalLM(config))


def attention() -> Iterator[Comparison]:
    own = own_model([{"attention": {"heads": HEADS}}, {"mlp": {"hidden": HIDDEN, "activation": "swiglu"}}])
    blocks = [
        (nn.RMSNorm(D_MODEL), layer) for _ in range(LAYERS) for layer in (PlainAttention(), PlainSwiGlu())
    ]
    yield models("attention + MLP / plain SDPA GPT", 1.05, own, Stack(blocks), hf=False)


class Stack(nn.Module):
    """Embedding, x + f(norm(x)) for each (norm, f), final norm, head tied to the embedding."""

    def __init__(self, blocks: Sequence[tuple[nn.Module, nn.Module]]):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, D_MODEL)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.norms = nn.ModuleList(norm for norm, _ in blocks)
        self.layers = nn.ModuleList(layer for _, layer in blocks)
        self.final_norm = nn.RMSNorm(D_MODEL)

    def forward(self, ids_bl: Tensor) -> Tensor:
        x_bld = self.embedding(ids_bl)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x_bld = x_bld + layer(norm(x_bld))
        return F.linear(self.final_norm(x_bld), self.embedding.weight)


class PlainAttention(nn.Module):
    """Causal attention with rotary positions, as one would write it."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        width = D_MODEL // HEADS
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False)
        self.out = nn.Linear(D_MODEL, D_MODEL, bias=False)
        angles = torch.outer(torch.arange(LENGTH), 10000 ** -(torch.arange(0, width, 2) / width))
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x_bld: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x_bld).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(self._rotate(q), self._rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def _rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-b, a], dim=-1) * self.sin


class PlainSwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(D_MODEL, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, D_MODEL, bias=False)

    def forward(self, x_bld: Tensor) -> Tensor:
        gate, value = self.up(x_bld).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


# The floor of matrix products


class _Products(TorchDispatchMode):
    """Records every matrix product: its operands' shapes and strides."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[Any, Any], tuple[Any, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].rstrip("_")
        if name in self.NAMES:
            a, b = [t for t in args if isinstance(t, Tensor)][-2:]
            self.found.append(((a.shape, a.stride()), (b.shape, b.stride())))
        return func(*args, **(kwargs or {}))


def bare_products(step: Step) -> tuple[Step, float]:
    """A function that does a step's matrix products and nothing else, and the FLOPs of one call.

    Operands of equal shape are the same memory and results go to memory that is there already, so that this
    is no more than what any way of doing these products must take. Attention's own products are not seen.
    """
    with _Products() as products:
        step()
    memory: dict[Any, Tensor] = {}

    def operand(layout: Any) -> Tensor:
        shape, stride = layout
        size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        key = (shape, stride)
        return memory.setdefault(key, torch.randn(size).as_strided(shape, stride))

    calls, flops = [], 0.0
    for left, right in products.found:
        a, b = operand(left), operand(right)
        shape = (*a.shape[:-1], b.shape[-1])
        out = operand((shape, torch.empty(shape, device="meta").stride()))
        calls.append((a, b, torch.mm if a.ndim == 2 else torch.bmm, out.clone()))
        flops += 2.0 * out.numel() * a.shape[-1]

    def run() -> None:
        for a, b, product, out in calls:
            product(a, b, out=out)

    return run, flops


def peak_rate(rounds: int = 5) -> float:
    """FLOPs a second of one large matrix product."""
    a, b = torch.randn(2, 2048, 2048)
    out = torch.empty_like(a)
    seconds = alternate([lambda: torch.mm(a, b, out=out)], rounds)[0]
    return 2.0 * 2048**3 / min(reading.wall for reading in seconds)


# Reporting

COMPARISONS = {"mamba2": mamba2, "mamba1": mamba1, "deltanet": deltanet, "attention": attention}


def measure(comparison: Comparison, rounds: int) -> dict[str, Any]:
    bare, flops = bare_products(comparison.own)
    own, other, floor = alternate([comparison.own, comparison.other, bare], rounds)
    wall = spread([a.wall / b.wall for a, b in zip(own, other, strict=True)])
    return {
        "name": comparison.name,
        "bar": comparison.bar,
        "met": wall["median"] <= comparison.bar,
        "wall": wall,
        "cpu": spread([a.cpu / b.cpu for a, b in zip(own, other, strict=True)]),
        "floor": spread([a.wall / b.wall for a, b in zip(floor, own, strict=True)]),
        "flops": flops,
        "own_params": comparison.own_params,
        "other_params": comparison.other_params,
        "readings": {
            name: [asdict(reading) for reading in readings]
            for name, readings in (("own", own), ("other", other), ("floor", floor))
        },
    }


def row(found: dict[str, Any]) -> str:
    wall, cpu, own = found["wall"], found["cpu"], found["readings"]["own"]
    milliseconds = {
        side: 1e3 * median(reading["wall"] for reading in readings)
        for side, readings in found["readings"].items()
    }
    cells = [
        found["name"],
        f"{found['own_params']:,} / {found['other_params']:,}",
        f"{milliseconds['own']:.0f} / {milliseconds['other']:.0f}",
        f"{wall['median']:.3f} ({wall['low']:.3f}-{wall['high']:.3f})",
        f"{cpu['median']:.3f} ({cpu['low']:.3f}-{cpu['high']:.3f})",
        f"{found['bar']:.3f} {'met' if found['met'] else 'MISSED'}",
        f"{found['floor']['median']:.2f}",
        f"{found['flops'] / milliseconds['own'] / 1e6:.0f}",
        f"{median(reading['faults'] for reading in own):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(COMPARISONS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/cpu_speed.json"))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(COMPARISONS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(COMPARISONS)}")
    torch.set_num_threads(options.threads)
    peak = peak_rate()
    print(f"{options.threads} threads; a large float32 product runs at {peak / 1e9:.0f} GF/s")
    print(f"{BATCH} x {LENGTH} tokens, d_model {D_MODEL}, {LAYERS} layers, float32; own / other\n")
    titles = ["", "parameters", "ms", "time", "cpu", "bar", "floor", "GF/s", "page faults"]
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}", flush=True)
    results = []
    for part in options.parts or COMPARISONS:
        for comparison in COMPARISONS[part]():
            results.append(measure(comparison, options.rounds))
            print(row(results[-1]), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    record = {"torch": torch.__version__, "threads": options.threads, "peak": peak, "results": results}
    options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
