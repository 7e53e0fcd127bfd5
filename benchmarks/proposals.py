"""How long does a sampler take to propose a candidate when 2,000 trials have finished?

    python benchmarks/proposals.py [--trials 2000] [--proposals 20] [SPACE]

Tells each sampler of as many finished trials (with `--stopped`, half of them stopped at a rung) and
times its next proposals, the candidates' costs and hashes included.
"""

from __future__ import annotations

import argparse
import statistics
import time
import zlib
from pathlib import Path

import numpy as np

from archsearch.search.choosers import RandomChooser
from archsearch.search.samplers import Proposer
from archsearch.search.space import SearchSpace, read_space

SPACE = Path(__file__).parent.parent / "search_spaces/hybrids.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space", type=Path, nargs="?", default=SPACE)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--proposals", type=int, default=20)
    parser.add_argument("--stopped", action="store_true")
    arguments = parser.parse_args()
    print(f"{arguments.space.name}, {arguments.trials} finished trials: milliseconds a proposal")
    print("| sampler | median | largest |\n|---|---|---|")
    for sampler in ("random", "tpe", "nsga2", "evolution"):
        times = measure(read_space(arguments.space), sampler, arguments)
        print(f"| {sampler} | {statistics.median(times):.0f} | {max(times):.0f} |")


def measure(space: SearchSpace, sampler: str, arguments: argparse.Namespace) -> list[float]:
    """Milliseconds of each proposal."""
    settings = space.settings
    search = settings.search.model_copy(update={"sampler": sampler, "start_from": []})
    space = SearchSpace(
        space.source, space.text, settings.model_copy(update={"search": search}), space.sections
    )
    proposer, rng = Proposer(space), np.random.default_rng(0)
    for i in range(arguments.trials):
        # Proposals of a random sampler, as recorded: how they came about does not matter for what follows.
        candidate = proposer.replay(str(i), space.candidate(RandomChooser(rng)).params)
        tell(space, proposer, str(i), candidate.params, rng, arguments.stopped)
    times = []
    for i in range(arguments.trials, arguments.trials + arguments.proposals):
        began = time.perf_counter()
        candidate = proposer.ask(str(i))
        space.violations(candidate)
        assert candidate.experiment is None or candidate.experiment.hash
        times.append(1e3 * (time.perf_counter() - began))
        tell(space, proposer, str(i), candidate.params, rng, arguments.stopped)
    return times


def tell(
    space: SearchSpace,
    proposer: Proposer,
    trial: str,
    params: dict[str, object],
    rng: np.random.Generator,
    stopped: bool,
) -> None:
    """What training might have found: noisy, and depending on the choices."""
    proposer.accept()
    spread = sum(zlib.crc32(f"{name} {str(value)[:3]}".encode()) % 7 for name, value in params.items()) / (
        7 * len(params)
    )
    values = [float(np.clip(spread + rng.normal(0, 0.1), 0, 1)), 4 + 3 * spread + float(rng.normal(0, 0.3))]
    values = values[: len(space.settings.objectives)]
    if stopped and int(trial) % 2:
        proposer.stop(trial, values, 1 / 9)
    else:
        proposer.complete(trial, values)


if __name__ == "__main__":
    main()
