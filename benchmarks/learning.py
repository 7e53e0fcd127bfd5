"""Is the learning real? Recall from scratch on one core, and text against models that need no training.

    python benchmarks/learning.py [recall] [text] [--minutes 15]

recall: specs/attention_tiny.yaml and specs/alternating_tiny.yaml learn MQAR (128 symbols, 8 pairs, length 32)
within 60 CPU-seconds on one thread, two seeds each; scored on 1,024 fresh sequences.
text: a hybrid of at most 3M parameters learns the `reference` domain for at most --minutes on two threads;
scored on the whole test split, against `xz -9` of the same bytes and an interpolated trigram model of the
same training bytes. The budget is in tokens; the minutes are checked, not used as a schedule.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from byte_baselines import trigram_bits_per_byte, xz_bits_per_byte

from archsearch import load_spec
from archsearch.data import load_domain
from archsearch.experiment import Experiment, load_experiment
from archsearch.experiment.run import ExperimentRun
from archsearch.spec import model_cost

ROOT = Path(__file__).resolve().parents[1]
CPU_SECONDS = 60.0


def recall() -> None:
    torch.set_num_threads(1)
    print("MQAR, 128 symbols, 8 pairs, length 32; 1 thread; accuracy on 1,024 fresh sequences (chance 1/64)")
    print("| spec | seed | parameters | accuracy | steps | CPU seconds |\n|---|---|---|---|---|---|")
    for name in ("attention_tiny", "alternating_tiny"):
        spec = load_spec(ROOT / "specs" / f"{name}.yaml")
        for seed in (0, 1):
            experiment = Experiment.model_validate(
                {
                    "arch": spec,
                    "data": {"mixture": {"mqar": 1}},
                    "training": {"tokens": 1_000_000, "lr": 3e-3, "seed": seed},
                    "evaluation": {"domains": [], "recall": ["mqar"], "examples": 1024},
                }
            )
            accuracy, steps, seconds = _train_for(experiment, CPU_SECONDS)
            params = model_cost(spec, 32).total.params
            print(f"| {name} | {seed} | {params:,} | {accuracy:.4f} | {steps} | {seconds:.1f} |", flush=True)


def _train_for(experiment: Experiment, seconds: float) -> tuple[float, int, float]:
    """Train through the budget, or until the CPU seconds are gone; accuracy, steps, seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = ExperimentRun(experiment, Path(folder))
        began = time.process_time()
        while not run.finished and time.process_time() - began < seconds:
            run.advance(10)
        spent = time.process_time() - began
        return run.evaluate()["recall"], run.step, spent


def text(minutes: float) -> None:
    torch.set_num_threads(2)
    experiment = load_experiment(ROOT / "benchmarks" / "reference_text.yaml")
    params = model_cost(experiment.arch, 1).total.params
    train, test = load_domain("reference", "train"), load_domain("reference", "test")
    baselines = {
        "byte trigram with backoff (same training bytes)": trigram_bits_per_byte(train, test),
        "xz -9 of the test bytes": xz_bits_per_byte(test),
    }
    print(f"\n`reference`: {len(train):,} training bytes, {len(test):,} test bytes")
    print("| model | bits per byte (test) |\n|---|---|")
    for name, bits in baselines.items():
        print(f"| {name} | {bits:.3f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = ExperimentRun(experiment, Path(folder))
        began = time.perf_counter()
        while not run.finished and time.perf_counter() - began < 60 * minutes:
            run.advance(10)
        spent = time.perf_counter() - began
        scores = run.evaluate()
        for context in experiment.contexts:
            bits = scores[f"bits_per_byte/reference@{context}"]
            print(f"| {experiment.name}, context {context} | {bits:.3f} |")
        print(
            f"{params:,} parameters, {run.tokens:,} of {experiment.training.tokens:,} tokens, {spent:.0f} s"
        )


PARTS = ("recall", "text")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help="recall, text; both by default")
    parser.add_argument("--minutes", type=float, default=15.0)
    arguments = parser.parse_args()
    if "recall" in (arguments.parts or PARTS):
        recall()
    if "text" in (arguments.parts or PARTS):
        text(arguments.minutes)


if __name__ == "__main__":
    main()
