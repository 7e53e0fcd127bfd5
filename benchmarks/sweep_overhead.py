"""What the driver costs: a sweep of trials that do almost nothing, timed as a whole.

Each trial takes one optimiser step on a one-layer model and is scored on a handful of tokens. Its own work is
the time it reports: training and scoring. Everything else of the sweep's wall-clock time counts as overhead:
starting and stopping Ray, importing torch in the workers, building models and data, proposing, recording.

    python benchmarks/sweep_overhead.py [--trials 24] [--concurrent 2]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from archsearch.study import Study

SPACE = """
name: overhead
arch:
  tokenizer: bytes
  d_model: 16
  layers: [{{mlp: {{hidden: {{$choice: [16, 32]}}}}}}]
data: {{mixture: {{reference: 0.5, mqar: 0.5}}}}
training: {{tokens: 256, context: 32, tokens_per_step: 256, lr: {{$log: [0.001, 0.01]}}}}
evaluation: {{tokens: 256, examples: 8}}
search: {{trials: {trials}}}
resources: {{concurrent: {concurrent}}}
"""

RUN = """
import sys
from pathlib import Path
from archsearch.search.driver import run_sweep
from archsearch.search.space import load_space
sys.exit(run_sweep(load_space(sys.argv[1]), Path(sys.argv[2])).exit_code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--concurrent", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        space, run = Path(folder) / "space.yaml", Path(folder) / "run"
        space.write_text(SPACE.format(trials=options.trials, concurrent=options.concurrent))
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", RUN, str(space), str(run)], check=True)
        wall = time.perf_counter() - began
        study = Study.read(run)
    own = sum(trial.seconds or 0.0 for trial in study.complete) / options.concurrent
    first = min(trial.started for trial in study.complete) - study.sessions[0].started
    print(f"trials      {len(study.complete)}, {options.concurrent} at a time")
    print(f"wall clock  {wall:.1f} s, of which {first:.1f} s before the first trial was handed out")
    print(f"own work    {own:.1f} s")
    print(f"overhead    {(wall - own) / len(study.complete):.3f} s a trial")


if __name__ == "__main__":
    main()
