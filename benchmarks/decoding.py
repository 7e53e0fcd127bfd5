"""One more token after a long context: what it takes in time and memory, by kind of layer.

A model of two layers of each kind, and a hybrid that has attention in every other layer, read a context and
then take tokens one by one. Contexts take turns token by token, so that load on the machine strikes them
alike: a figure is the median time of a token, and in brackets its median ratio to the shortest context's.
`bytes` are what the cache really holds, and are checked against the spec's cost.

    python benchmarks/decoding.py [kind ...] [--contexts 256 1024 4096 16384] [--tokens 40] [--threads 1]

Prints a table and writes every figure to --json. Exits with 1 where a cache's bytes differ from its cost.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from archsearch.compiler import compile_model
from archsearch.spec import ModelSpec, model_cost

D_MODEL, VOCAB, BATCH = 256, 1024, 4
STACKS: dict[str, list[Any]] = {
    "mamba1": ["mamba1"] * 2,
    "mamba2": ["mamba2"] * 2,
    "gated_deltanet": ["gated_deltanet"] * 2,
    "kda": ["kda"] * 2,
    "lightning": ["lightning"] * 2,
    "rglru": ["rglru"] * 2,
    "gated_conv": ["gated_conv"] * 2,
    "attention, window 256": [{"attention": {"heads": 4, "window": 256}}] * 2,
    "hybrid (mamba2, attention)": ["mamba2", {"attention": {"heads": 4, "kv_heads": 2}}],
    "attention": [{"attention": {"heads": 4, "kv_heads": 2}}] * 2,
}


def measure(layers: list[Any], contexts: list[int], tokens: int) -> list[dict[str, Any]]:
    """A figure a context: seconds of each token, bytes held after the context, bytes by the spec's cost."""
    spec = ModelSpec.model_validate({"d_model": D_MODEL, "vocab_size": VOCAB, "layers": layers})
    model = compile_model(spec).eval()
    ids_bl = torch.randint(VOCAB, (BATCH, max(contexts)), generator=torch.Generator().manual_seed(0))
    found: list[dict[str, Any]] = []
    states = []
    for context in contexts:
        states.append(model.prefill(ids_bl[:, :context])[1])
        expected = BATCH * model_cost(spec, context).total.state_bytes
        found.append({"context": context, "bytes": states[-1].bytes(), "expected": expected, "seconds": []})
    for token in range(tokens + 3):
        for i, figure in enumerate(found):
            began = time.perf_counter()
            _, states[i] = model.step(ids_bl[:, 0], states[i])
            if token >= 3:
                figure["seconds"].append(time.perf_counter() - began)
    return found


def row(name: str, found: list[dict[str, Any]]) -> str:
    first = found[0]["seconds"]
    cells = []
    for figure in found:
        ratio = median(a / b for a, b in zip(figure["seconds"], first, strict=True))
        kib = figure["bytes"] / BATCH / 1024
        cells.append(f"{1e3 * median(figure['seconds']):.2f} ms ({ratio:.2f}), {kib:,.0f} KiB")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="kind", help=", ".join(STACKS))
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/decoding.json"))
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(STACKS):
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(STACKS)}")
    torch.set_num_threads(options.threads)
    print(f"one token a sequence, {BATCH} sequences, d_model {D_MODEL}, 2 layers, float32; KiB a sequence\n")
    print(f"| layers | {' | '.join(f'{c:,} tokens' for c in options.contexts)} |")
    print("|---" * (1 + len(options.contexts)) + "|", flush=True)
    results = {}
    with torch.inference_mode():
        for name in options.kinds or STACKS:
            results[name] = measure(STACKS[name], options.contexts, options.tokens)
            print(row(name, results[name]), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"torch": torch.__version__, "results": results}, indent=1) + "\n")
    wrong = [name for name, found in results.items() if any(f["bytes"] != f["expected"] for f in found)]
    if wrong:
        sys.exit(f"caches differ from their cost: {', '.join(wrong)}")
    print("\nevery cache holds exactly the bytes of its cost")


if __name__ == "__main__":
    main()
