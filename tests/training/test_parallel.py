"""Parts of a step add up to the whole step: losses, gradients, and what is learnt from them."""

import json
import sys
from pathlib import Path
from subprocess import run as start

import numpy as np
import pytest
import torch

from archsearch.data import IGNORE, Group
from archsearch.training.parallel import Share

TWO_PROCESSES = """
import json, os, sys
import torch.distributed as dist, torch.multiprocessing as mp
from archsearch.experiment.run import ExperimentRun
from archsearch.experiment.spec import load_experiment
from archsearch.training.parallel import Share
from pathlib import Path

def work(rank, folder, workers):
    share = None
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
        share = Share(rank, workers)
    run = ExperimentRun(load_experiment(folder + "/spec.yaml"), Path(folder, f"rank{rank}"), share=share)
    run.advance(run.steps)
    if rank == 0:
        run.evaluate()

if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1], int(sys.argv[2])), nprocs=int(sys.argv[2]))
"""
SPEC = """
arch:
  tokenizer: bytes
  d_model: 16
  layers:
    - mamba2: {head_dim: 16, d_state: 4}
    - attention: {heads: 2}
    - moe: {experts: 4, top_k: 2, selection_bias: true, bias_rate: 0.01}
data:
  mixture: {reference: 2, mqar: 1, few: 1}
  sources: {few: {mqar: {pairs: 1, length: 16}}}
training: {tokens: 6K, context: 32, tokens_per_step: 96, lr: 0.003}
evaluation: {tokens: 512, examples: 8}
"""


def test_the_parts_of_a_group_are_the_group() -> None:
    rng = np.random.default_rng(0)
    inputs_bl = rng.integers(0, 256, (5, 8))
    targets_bl = np.where(rng.random((5, 8)) < 0.5, inputs_bl, IGNORE)
    group = Group("text", inputs_bl, targets_bl, 0.25)
    parts = [Share(rank, 3).part(group) for rank in range(3)]
    assert [len(part.inputs_bl) for part in parts] == [2, 2, 1]
    assert sum(part.weight for part in parts) == pytest.approx(0.25)
    rows = {bytes(row) for part in parts for row in part.inputs_bl}
    assert rows == {bytes(row) for row in inputs_bl}
    assert Share(6, 7).part(group).weight == 0


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Also where a process has no sequence of a source, or of a step, as three sequences a step give it."""
    losses, metrics = {}, {}
    for workers in (1, 2, 4):
        folder = tmp_path / str(workers)
        folder.mkdir()
        (folder / "spec.yaml").write_text(SPEC)
        (folder / "program.py").write_text(TWO_PROCESSES)
        done = start(
            [sys.executable, folder / "program.py", folder, str(workers)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        points = [json.loads(line) for line in (folder / "rank0/metrics.jsonl").read_text().splitlines()]
        losses[workers] = torch.tensor([point["loss"] for point in points if "loss" in point])
        metrics[workers] = points[-1]["evaluation"]["perplexity"]
    for workers in (2, 4):
        torch.testing.assert_close(losses[workers], losses[1], rtol=1e-4, atol=1e-5)
        assert metrics[workers] == pytest.approx(metrics[1], rel=1e-3)
    assert losses[1][-1] < losses[1][0]
