"""Do paraphrases in the data raise recall in wordings that were never trained?

    python benchmarks/paraphrases.py [--device cuda] [--tokens 24e6] [--seeds 3]

The question of arXiv 2510.26912, asked of invented facts: the same sequential hybrid is trained on a mixture
whose facts come in one wording, and on one where half of them come in many. Both are asked, about facts they
never saw, in the one wording, in the trained paraphrases, and in wordings that no training shows (chance is
1/3: a document states three facts). Means over seeds with 95 % intervals.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from front_noise import interval

from archsearch.experiment import Experiment

ARCH = {
    "tokenizer": "bytes",
    "d_model": 128,
    "defaults": {
        "mamba2": {"d_state": 32},
        "attention": {"heads": 2, "rope": "none", "conv": 4},
        "mlp": {"expand": 2},
    },
    "pattern": "M-*-*-*-",
}
MIXTURES = {
    "one wording": {"reference": 0.1, "mqar": 0.1, "facts": 0.8},
    "with paraphrases": {"reference": 0.1, "mqar": 0.1, "facts": 0.4, "paraphrases": 0.4},
}
ASKED = ("facts", "paraphrases", "held_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=float, default=24e6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    jobs = [
        (mixture, seed, options.tokens, options.device)
        for mixture in MIXTURES
        for seed in range(options.seeds)
    ]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        scores = pool.starmap(train_and_ask, jobs, chunksize=1)
    print("| trained on facts in | one wording | trained paraphrases | unseen wordings |\n|---|---|---|---|")
    for mixture in MIXTURES:
        own = [score for job, score in zip(jobs, scores, strict=True) if job[0] == mixture]
        cells = [interval([score[wordings] for score in own]) for wordings in ASKED]
        print(f"| {mixture} | {' | '.join(f'{mean:.3f} ± {half:.3f}' for mean, half in cells)} |")


def train_and_ask(mixture: str, seed: int, tokens: float, device: str) -> dict[str, float]:
    import torch

    from archsearch.data import recall_examples
    from archsearch.evaluation.score import recall_accuracy
    from archsearch.experiment.run import ExperimentRun

    torch.set_num_threads(1)
    experiment = Experiment.model_validate(
        {
            "arch": ARCH,
            "data": {"mixture": MIXTURES[mixture]},
            "training": {"tokens": tokens, "lr": 3e-3, "tokens_per_step": 8192, "seed": seed},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run = ExperimentRun(experiment, Path(folder), device)
        run.advance(run.steps)
        model = run.model.eval()
        with torch.no_grad():
            return {
                wordings: recall_accuracy(
                    model, recall_examples("facts", count=512, seed=0, wordings=wordings), device
                )
                for wordings in ASKED
            }


if __name__ == "__main__":
    main()
