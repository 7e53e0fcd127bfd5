"""Kernels and models on a CUDA device: are they right, and how fast are they against other implementations.

  train      training steps (bf16 autocast, fp32 weights, fused AdamW) of five layouts at two sizes, against
             mamba_ssm's own model and transformers' at equal shapes, taking turns; share of the matmul peak
  attention  our call against torch's functions called bare, forward and backward
  parallel   a parallel block against its branches run one after the other
  parity     every layer kind, with the kernels that are usable and with native torch, against float64 on the
             CPU: outputs and gradients, relative to the size (2-norm) of each tensor
  compiled   the training steps with each block compiled by torch, ours and the others', and ours recorded
  decode     tokens one at a time after a prompt, recorded and not, against mamba_ssm's (in a CUDA graph) and
             transformers' models, taking turns; and the bytes of the caches
  long       the training steps at the longer contexts

    python benchmarks/gpu.py [PART ...] --out FILE [--minutes 9] [--sizes 130m 1.3b] [--contexts 2048 8192]
                             [--layouts mamba2 sequential] [--kinds attention mlp]

Parts run in the order above. Every figure is written to FILE as it comes; another run leaves out what is
there and goes on. A case that does not fit in memory, fails or takes too long is recorded as that. --smoke:
tiny shapes, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_rivals
import torch
from gpu_blocks import attention, parallel
from gpu_decode import decode
from gpu_models import SHAPES, layouts
from gpu_parity import parity
from gpu_report import CUDA, DEVICE, Report
from gpu_speed import train

from archsearch.mixers.kernels import Kernels
from archsearch.mixers.kernels.table import OPERATIONS
from archsearch.mixers.table import MIXERS


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


def note_machine(report: Report) -> None:
    """A further row where a later run is on another machine, or finds other kernels."""
    found = machine()
    known = [row for name, row in report.rows.items() if name.startswith("machine")]
    if found not in [{key: value for key, value in row.items() if key != "took"} for row in known]:
        report.case(f"machine, run {len(known) + 1}" if known else "machine", lambda: found)


def parts(report: Report, given: argparse.Namespace) -> dict[str, Callable[[], None]]:
    sizes, kinds = given.sizes, given.layouts
    first, later = given.contexts[:1], given.contexts[1:]
    return {
        "train": lambda: train(report, sizes, first, kinds, compiled=False),
        "attention": lambda: attention(report),
        "parallel": lambda: parallel(report, sizes),
        "parity": lambda: parity(report, given.kinds),
        "compiled": lambda: train(report, sizes, first, kinds, compiled=True),
        "decode": lambda: decode(report, sizes, first, kinds),
        "long": lambda: train(report, sizes, later, kinds, compiled=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=list(SHAPES), default=["130m", "1.3b"])
    parser.add_argument("--contexts", nargs="+", type=int, default=[2048, 8192, 32768])
    kinds = list(layouts(SHAPES["smoke"]))
    parser.add_argument("--layouts", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--kinds", nargs="+", choices=list(MIXERS), default=[], help="of layers, for parity")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    if given.smoke:
        given.sizes, given.contexts, given.rounds = ["smoke"], [32, 64], 1
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    report = Report(given.out, time.monotonic() + 60 * given.minutes, given.smoke, given.rounds, rows)
    runs = parts(report, given)
    if unknown := set(given.parts) - set(runs):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(runs)}")
    note_machine(report)
    for name, run in runs.items():
        if not given.parts or name in given.parts:
            run()
    missed = [name for name, row in report.rows.items() if row.get("met") is False]
    failed = [name for name, row in report.rows.items() if isinstance(row.get("error"), str)]
    print(f"{len(report.rows)} cases; bars missed: {missed or 'none'}; not run: {failed or 'none'}")


if __name__ == "__main__":
    main()
