"""Kernels and models on a CUDA device: are they right, and how fast are they against other implementations.

  parity     every layer kind, with the kernels that are usable and with native torch, against float64 on the
             CPU: outputs and gradients, relative to the size (2-norm) of each tensor
  train      training steps (bf16 autocast, fp32 weights, fused AdamW) of five layouts at two sizes, against
             mamba_ssm's own model and transformers' at equal shapes, taking turns; share of the matmul peak
  decode     tokens a second one at a time after a prompt, and the bytes of the caches
  attention  our call against scaled_dot_product_attention called bare, forward and backward
  parallel   a parallel block against its branches run one after the other

    python benchmarks/gpu.py [PART ...] --out FILE [--minutes 9] [--sizes 130m 1.3b] [--contexts 2048 8192]

Every figure is written to FILE as it comes; another run leaves out what is there and goes on. A case that
does not fit in memory, or fails, is recorded as that. --smoke: tiny shapes, on a CPU too.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import gpu_rivals
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from archsearch.compiler.blocks import ParallelLayer
from archsearch.compiler.merges import MergeModule
from archsearch.compiler.model import LanguageModel
from archsearch.mixers.attend import causal_attention
from archsearch.mixers.base import Call, Mixer, Surroundings, tensors_in
from archsearch.mixers.kernels import Choice, Kernels
from archsearch.mixers.kernels.table import OPERATIONS
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec, model_cost

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BF16, FP32 = torch.bfloat16, torch.float32
BARS = {"bfloat16": 1e-2, "float32": 1e-4, "train": 1.0, "attention": 1 / 0.95, "parallel": 0.9}


@dataclass
class Report:
    """Figures by name, kept in a file. `due`: when no new case is begun."""

    path: Path
    due: float
    smoke: bool
    rounds: int
    rows: dict[str, Any] = field(default_factory=dict)

    def case(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Run a case that is not there yet, and keep what it gives."""
        if name in self.rows or time.monotonic() > self.due:
            return
        start = time.monotonic()
        try:
            row = run()
        except torch.cuda.OutOfMemoryError:
            row = {"error": "out of memory"}
        except Exception as error:  # a rival that does not run, a kernel that refuses: part of the result
            row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        row["took"] = round(time.monotonic() - start, 1)
        self.rows[name] = row
        self.path.write_text(json.dumps(self.rows, indent=1))
        print(name, json.dumps(row), flush=True)
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(steps: Sequence[Callable[[], object]], rounds: int, warm: int = 2) -> list[list[float]]:
    """Seconds of each step by round. Steps take turns, every other round backwards."""
    for step in [*steps] * warm:
        step()
    taken: list[list[float]] = [[] for _ in steps]
    for i in range(rounds):
        order = list(enumerate(steps))
        for j, step in order if i % 2 == 0 else reversed(order):
            synchronise()
            start = time.perf_counter()
            step()
            synchronise()
            taken[j].append(time.perf_counter() - start)
    return taken


def ratio(own: list[float], other: list[float]) -> float:
    """The median over rounds of own / other."""
    return round(median(a / b for a, b in zip(own, other, strict=True)), 4)


def autocast() -> Any:
    return torch.autocast(DEVICE, BF16)


# Machine


def machine() -> dict[str, Any]:
    versions = {name: gpu_rivals.version(name) for name in gpu_rivals.PACKAGES}
    usable = [Kernels("auto", DEVICE).choose(operation) for operation in OPERATIONS]
    return {
        "device": torch.cuda.get_device_name() if CUDA else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **versions,
        "kernels": {c.operation: f"{c.name} ({c.why})" for c in usable},
        "transformers_fast_path": gpu_rivals.fast_path(),
    }


def peak(report: Report) -> float:
    """bf16 matmul FLOP/s that this device reaches."""

    def run() -> dict[str, Any]:
        side = 256 if report.smoke else 8192
        a, b = torch.randn(2, side, side, device=DEVICE, dtype=BF16)
        taken = seconds([lambda: a @ b], 10, warm=5)[0]
        return {"flops": 2 * side**3 / median(taken)}

    report.case("peak", run)
    return float(report.rows.get("peak", {}).get("flops", float("nan")))


# Parity

KINDS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 4, "kv_heads": 2},
    "attention windowed": {"heads": 4, "window": 40},
    "attention gated, sinks": {"heads": 4, "gate": "head", "sinks": True},
    "attention capped": {"heads": 4, "softcap": 20.0},
    "mla": {"heads": 4, "nope_dim": 32, "rope_dim": 32, "value_dim": 32, "kv_rank": 64},
    "mamba1": {},
    "mamba1 heads": {"heads": 2},
    "mamba2": {"d_state": 64, "head_dim": 32},
    "mamba2 groups": {"d_state": 64, "head_dim": 64, "groups": 2, "gated_norm": "before"},
    "mamba2 no norm": {"d_state": 64, "head_dim": 32, "gated_norm": "none"},
    "gated_deltanet": {},
    "kda": {},
    "lightning": {},
    "gated_conv": {},
    "rglru": {},
    "mlp": {"activation": "swiglu"},
    "moe": {"experts": 4, "top_k": 2},
}
"""Kind (its first word) and what is special -> fields."""


def parity(report: Report) -> None:
    for name, fields in KINDS.items():
        for dtype in (FP32, BF16):
            for mode in ("auto", "native"):
                label = str(dtype).removeprefix("torch.")
                report.case(
                    f"parity/{name}/{label}/{mode}",
                    partial(layer_parity, report, name, fields, dtype, mode),
                )


def layer_parity(
    report: Report, name: str, fields: dict[str, Any], dtype: torch.dtype, mode: Any
) -> dict[str, Any]:
    """The largest relative error of the output and of every gradient, and which that is. In bf16 under
    autocast, as in training."""
    kind, d_model, length = name.split()[0], 128, 40 if report.smoke else 300
    spec = ModelSpec.model_validate({"d_model": d_model, "vocab_size": 8, "layers": [{kind: fields}]})
    layer = spec.nodes[0].layer
    torch.manual_seed(0)
    truth = MIXERS[kind](layer, Surroundings(d_model)).double()
    truth.reset_parameters(torch.Generator().manual_seed(0))
    own = MIXERS[kind](layer, Surroundings(d_model, kernels=Kernels(mode, DEVICE)))
    own.load_state_dict({key: value.float() for key, value in truth.state_dict().items()})
    own = own.to(DEVICE)
    x, dy = torch.randn(2, 2, length, d_model)
    if dtype == BF16:
        x, dy = x.to(BF16).float(), dy.to(BF16).float()
    expected = results(truth, x.double(), dy.double())
    with autocast() if dtype == BF16 else nullcontext():
        y, leaf = forward(own, x.to(DEVICE))
    found = gradients(own, y, leaf, dy.to(DEVICE))
    errors = {key: relative(found[key], expected[key]) for key in expected}
    worst = max(errors, key=lambda key: errors[key])
    used = sorted({str(c.name) for m in own.modules() for c in vars(m).values() if isinstance(c, Choice)})
    bar = BARS[str(dtype).removeprefix("torch.")]
    return {
        "error": errors[worst],
        "of": worst,
        "output": errors["y"],
        "met": errors[worst] <= bar,
        "by": used,
    }


def forward(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    return layer(leaf), leaf


def gradients(layer: nn.Module, y: Tensor, leaf: Tensor, dy: Tensor) -> dict[str, Tensor]:
    named = {"x": leaf, **dict(layer.named_parameters())}
    found = torch.autograd.grad(y, list(named.values()), dy.to(y.dtype), allow_unused=True)
    kept = {key: g for key, g in zip(named, found, strict=True) if g is not None}
    return {"y": y.detach(), **{f"d {key}": g for key, g in kept.items()}}


def results(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    return gradients(layer, *forward(layer, x), dy)


def relative(found: Tensor, expected: Tensor) -> float:
    wide = expected.double().cpu()
    error = float((found.double().cpu() - wide).norm() / wide.norm().clamp(min=1e-12))
    return float("inf") if error != error else error


# Models


@dataclass(frozen=True)
class Shape:
    """A size of model: widths, layers (an attention and an MLP each, or two Mambas), tokens a step."""

    d_model: int
    layers: int
    heads: int
    hidden: int
    tokens: int
    d_state: int = 128
    vocab: int = 32768


SHAPES = {
    "130m": Shape(768, 12, 12, 2048, 32768),
    "1.3b": Shape(2048, 24, 16, 5632, 8192),
    "smoke": Shape(64, 4, 2, 128, 128, 16, 256),
}


def layouts(shape: Shape) -> dict[str, list[Any]]:
    attention = {"attention": {"heads": shape.heads, "rope": {"theta": 10000}}}
    mlp = {"mlp": {"hidden": shape.hidden, "activation": "swiglu"}}
    mamba2 = {"mamba2": {"d_state": shape.d_state, "head_dim": 64 if shape.d_model > 64 else 16}}
    key_dim, value_dim = gpu_rivals.delta_widths(shape)
    delta = {
        "key_heads": shape.heads // 2,
        "value_heads": shape.heads,
        "key_dim": key_dim,
        "value_dim": value_dim,
    }
    both = {"parallel": {"branches": [mamba2, attention], "merge": "sum"}}
    n = shape.layers
    return {
        "mamba2": [{"repeat": 2 * n, "layers": [mamba2]}],
        "attention": [{"repeat": n, "layers": [attention, mlp]}],
        "sequential": [{"repeat": n // 4, "layers": [mamba2, mlp] * 3 + [attention, mlp]}],
        "parallel": [{"repeat": n * 3 // 4, "layers": [both, mlp]}],
        "deltanet": [{"repeat": n, "layers": [{"gated_deltanet": delta}, mlp]}],
    }


def spec_of(shape: Shape, layout: str) -> ModelSpec:
    fields = {"d_model": shape.d_model, "vocab_size": shape.vocab, "embedding": {"tied": True}}
    return ModelSpec.model_validate({**fields, "layers": layouts(shape)[layout]})


def build(spec: ModelSpec, mode: Any = "auto") -> LanguageModel:
    """A model with initial weights drawn on the device: drawing a billion on a CPU takes too long here."""
    with torch.device(DEVICE):
        model = LanguageModel(spec, Kernels(mode, DEVICE))
        generator = torch.Generator(DEVICE).manual_seed(0)
        for module in model.modules():
            if isinstance(module, Mixer | MergeModule):
                module.reset_parameters(generator)
        nn.init.normal_(model.embedding.weight, std=0.02, generator=generator)
    return model


def training_step(model: nn.Module, logits: Callable[[Tensor], Tensor], ids: Tensor) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    targets = ids.roll(-1, 1)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with autocast():
            loss = F.cross_entropy(logits(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        optimiser.step()

    return step


def train(report: Report, sizes: list[str], contexts: list[int], compiled_too: bool) -> None:
    """Compiled at the first context alone."""
    top = peak(report)
    plan = [
        (size, context, layout, compiled)
        for context in contexts
        for compiled in (False, True)
        for size in sizes
        for layout in layouts(SHAPES[size])
        if not compiled or (compiled_too and context == contexts[0])
    ]
    for size, context, layout, compiled in plan:
        name = f"train/{size}/{context}/{layout}/{'compiled' if compiled else 'eager'}"
        report.case(
            name,
            partial(train_case, report, size, context, layout, compiled, top),
        )


def train_case(
    report: Report, size: str, context: int, layout: str, compiled: bool, top: float
) -> dict[str, Any]:
    shape = SHAPES[size]
    tokens = max(shape.tokens, context)
    spec = spec_of(shape, layout)
    ids = torch.randint(shape.vocab, (tokens // context, context), device=DEVICE)
    model = build(spec)
    if compiled:
        for block in model.layers:
            block.compile()
    own = training_step(model, model, ids)
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters())}
    (taken,) = seconds([own], report.rounds)
    flops = 3 * model_cost(spec, context, "bfloat16").total.flops * tokens
    row |= rates("own", taken, tokens)
    row["own share of peak"] = round(flops / median(taken) / top, 4)
    for name, rival in gpu_rivals.rivals(shape, layout, DEVICE):
        row |= against(report, own, name, rival, ids, compiled)
        gc.collect()
    ratios = {name: value for name, value in row.items() if name.startswith("own / ")}
    if ratios:
        row["met"] = max(ratios.values()) <= BARS["train"]
    if CUDA:
        row["GiB at most"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        torch.cuda.reset_peak_memory_stats()
    return row


def against(
    report: Report,
    own: Callable[[], object],
    name: str,
    rival: Callable[[], gpu_rivals.Built],
    ids: Tensor,
    compiled: bool,
) -> dict[str, Any]:
    """Our steps and another model's, taking turns. One other model at a time is held in memory; one that
    cannot be compiled runs as it is."""
    row: dict[str, Any] = {}
    for compile_it in (True, False) if compiled else (False,):
        label = f"{name} (eager)" if compiled and not compile_it else name
        try:
            other, logits = rival()
            row[f"{label} params"] = sum(p.numel() for p in other.parameters())
            if compile_it:
                gpu_rivals.compile_blocks(other)
            mine, its = seconds([own, training_step(other, logits, ids)], report.rounds)
            return {**row, **rates(label, its, ids.numel()), f"own / {label}": ratio(mine, its)}
        except Exception as error:  # it does not run here, or not beside ours: part of the result
            row[f"{label} error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        other = logits = None  # type: ignore[assignment]
        gc.collect()
    return row


def rates(name: str, taken: list[float], tokens: int) -> dict[str, Any]:
    return {f"{name} ms": round(1000 * median(taken), 2), f"{name} tokens/s": round(tokens / median(taken))}


# Decoding


def decode(report: Report, sizes: list[str], contexts: list[int]) -> None:
    for context in contexts:
        for size in sizes:
            for layout in layouts(SHAPES[size]):
                for batch in (1, 32):
                    name = f"decode/{size}/{context}/{layout}/batch {batch}"
                    report.case(
                        name,
                        partial(decode_case, report, size, context, layout, batch),
                    )


@torch.inference_mode()
def decode_case(report: Report, size: str, context: int, layout: str, batch: int) -> dict[str, Any]:
    """bf16 weights; the prompt is prefilled, then 32 tokens come one at a time."""
    shape, tokens = SHAPES[size], 4 if report.smoke else 32
    spec = spec_of(shape, layout)
    model = build(spec).to(BF16).eval()
    ids = torch.randint(shape.vocab, (1, context), device=DEVICE).expand(batch, -1).contiguous()
    start = time.perf_counter()
    _, state = model.prefill(ids)
    synchronise()
    first = time.perf_counter() - start
    readings = []
    for _ in range(3):
        current, after = ids[:, -1], state
        synchronise()
        start = time.perf_counter()
        for _ in range(tokens):
            logits, after = model.step(current, after)
            current = logits.argmax(-1)
        synchronise()
        readings.append(time.perf_counter() - start)
    held = sum(t.numel() * t.element_size() for t in tensors_in(state.layers))
    return {
        "tokens/s": round(batch * tokens / median(readings)),
        "ms a token": round(1000 * median(readings) / tokens, 3),
        "prefill ms": round(1000 * first, 1),
        "cache bytes a sequence": held // batch,
        "by the cost model": model_cost(spec, context, "bfloat16").total.state_bytes,
    }


# Attention and parallel blocks


def attention(report: Report) -> None:
    shapes = [(8, 12, 12, 2048, 64), (2, 16, 16, 8192, 128), (2, 32, 8, 8192, 128), (1, 16, 16, 32768, 128)]
    for shape in [(1, 2, 1, 64, 16)] if report.smoke else shapes:
        for window in (None, 16 if report.smoke else 1024):
            report.case(
                f"attention/{'x'.join(map(str, shape))}/{window or 'all'}",
                partial(attention_case, report, shape, window),
            )


def attention_case(
    report: Report, shape: tuple[int, int, int, int, int], window: int | None
) -> dict[str, Any]:
    """Forward and backward. shape: batch, heads, key heads, length, head_dim."""
    b, h, g, length, e = shape
    q, k, v, dy = (
        torch.randn(b, x, length, e, device=DEVICE, dtype=BF16, requires_grad=True) for x in (h, g, g, h)
    )
    scale = e**-0.5

    def step(run: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(run(), (q, k, v), dy)

    def bare() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=h != g)

    def under(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return bare()

    def own(mode: Any) -> Tensor:
        return causal_attention(q, k, v, scale=scale, window=window, kernels=Kernels(mode, DEVICE))

    steps = {"own": step(lambda: own("auto")), "own native": step(lambda: own("native")), "sdpa": step(bare)}
    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    row: dict[str, Any] = {}
    for backend in backends if CUDA else ():
        other = step(partial(under, backend))
        try:
            other()
            steps[backend.name.lower()] = other
        except RuntimeError as error:
            row[f"{backend.name.lower()} error"] = " ".join(str(error).split())[:120]
    taken = dict(zip(steps, seconds(list(steps.values()), 2 * report.rounds), strict=True))
    row |= {f"{name} ms": round(1000 * median(readings), 3) for name, readings in taken.items()}
    row["TFLOP/s"] = round(7 * b * h * length**2 * e / median(taken["own"]) / 1e12, 1) if not window else None
    row["own / sdpa"] = ratio(taken["own"], taken["sdpa"])
    row["met"] = row["own / sdpa"] <= BARS["attention"]
    return row


def parallel(report: Report, sizes: list[str], contexts: list[int]) -> None:
    for size in sizes:
        for context in contexts:
            report.case(
                f"parallel/{size}/{context}",
                partial(parallel_case, report, size, context),
            )


def parallel_case(report: Report, size: str, context: int) -> dict[str, Any]:
    """Forward and backward of Mamba-2 beside attention, overlapped and not, against the same two layers as
    blocks one after the other."""
    shape = SHAPES[size]
    both = layouts(shape)["parallel"][0]["layers"][0]
    fields = {"d_model": shape.d_model, "vocab_size": 8}
    joined = build(ModelSpec.model_validate({**fields, "layers": [both]}))
    apart = build(ModelSpec.model_validate({**fields, "layers": both["parallel"]["branches"]}))
    tokens = max(shape.tokens // 2, context)
    x = torch.randn(tokens // context, context, shape.d_model, device=DEVICE, requires_grad=True)
    dy = torch.randn_like(x)

    def step(model: LanguageModel, overlap: bool) -> Callable[[], tuple[Tensor, ...]]:
        leaves = [x, *(p for layer in model.layers for p in layer.parameters())]

        def run() -> tuple[Tensor, ...]:
            for module in model.modules():
                if isinstance(module, ParallelLayer):
                    module.overlap = overlap
            with autocast():
                y = x
                for layer in model.layers:
                    y = layer(y, Call())
            return torch.autograd.grad(y, leaves, dy.to(y.dtype))

        return run

    steps = [step(joined, True), step(joined, False), step(apart, False)]
    overlapped, plain, turns = seconds(steps, 2 * report.rounds)
    row = {
        "overlap changes": max(relative(a, b) for a, b in zip(steps[0](), steps[1](), strict=True)),
        "overlapped ms": round(1000 * median(overlapped), 3),
        "in one stream ms": round(1000 * median(plain), 3),
        "one after the other ms": round(1000 * median(turns), 3),
        "overlapped / one after the other": ratio(overlapped, turns),
        "in one stream / one after the other": ratio(plain, turns),
    }
    return {**row, "met": row["overlapped / one after the other"] <= BARS["parallel"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parts = ("parity", "train", "decode", "attention", "parallel")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["130m", "1.3b"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 8192, 32768])
    parser.add_argument("--eager", action="store_true", help="train without torch.compile alone")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if given.smoke:
        given.sizes, given.contexts, given.rounds = ["smoke"], [32], 1
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    report = Report(given.out, time.monotonic() + 60 * given.minutes, given.smoke, given.rounds, rows)
    report.case("machine", machine)
    runs: dict[str, Callable[[], None]] = {
        "parity": lambda: parity(report),
        "attention": lambda: attention(report),
        "parallel": lambda: parallel(report, given.sizes, given.contexts[:2]),
        "train": lambda: train(report, given.sizes, given.contexts, not given.eager),
        "decode": lambda: decode(report, given.sizes, given.contexts[:2]),
    }
    for name, run in runs.items():
        if not given.parts or name in given.parts:
            run()
    missed = [name for name, row in report.rows.items() if row.get("met") is False]
    failed = [name for name, row in report.rows.items() if isinstance(row.get("error"), str)]
    print(f"{len(report.rows)} cases; bars missed: {missed or 'none'}; not run: {failed or 'none'}")


if __name__ == "__main__":
    main()
