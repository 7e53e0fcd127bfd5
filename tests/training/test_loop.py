"""One optimiser step at a time.

Shape suffixes: b sequence, l position.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from archsearch import compile_model
from archsearch.data import IGNORE, DataSpec, Group, MixtureStream, StepBatch
from archsearch.mixers.base import Call
from archsearch.spec import ModelSpec
from archsearch.training.errors import TrainingFailed
from archsearch.training.loop import Trainer, make_optimizer
from archsearch.training.spec import TrainingSpec

SPEC = ModelSpec.model_validate(
    {
        "tokenizer": "bytes",
        "d_model": 16,
        "layers": [
            {"attention": {"heads": 2, "id": "a"}},
            {"mamba2": {"head_dim": 8, "d_state": 4}},
            {"parallel": {"branches": ["mlp", "mlp"], "merge": {"gate": {"by": "vector"}}}},
            {"share": "a"},
        ],
    }
)


def trainer(**fields: Any) -> Trainer:
    spec = TrainingSpec(tokens=2048, context=64, tokens_per_step=256, **fields)
    data = DataSpec(mixture={"reference": 2, "mqar": 1})
    stream = MixtureStream(data, context=64, tokens_per_step=256, seed=spec.seed)
    return Trainer(compile_model(SPEC, seed=spec.seed), stream, spec)


def losses(one: Trainer, steps: int) -> list[float]:
    return [one.train_step().loss for _ in range(steps)]


def weights(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in one.model.state_dict().items()}


def assert_equal(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> None:
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_seed_gives_the_same_losses_to_the_bit(precision: str) -> None:
    first, again = trainer(precision=precision), trainer(precision=precision)
    assert losses(first, 4) == losses(again, 4)
    assert_equal(weights(first), weights(again))
    assert losses(trainer(precision=precision, seed=1), 1) != losses(trainer(precision=precision), 1)


@pytest.mark.parametrize("at", [1, 3])
def test_a_restored_state_goes_on_to_the_bit(at: int) -> None:
    through = trainer()
    truth = losses(through, 6)
    stopped = trainer()
    losses(stopped, at)
    kept = pickle.loads(pickle.dumps(stopped.state()))
    resumed = trainer()
    resumed.restore(kept)
    assert losses(resumed, 6 - at) == truth[at:]
    assert_equal(weights(resumed), weights(through))


def test_bfloat16_trains_near_float32() -> None:
    wide, narrow = losses(trainer(), 8), losses(trainer(precision="bfloat16"), 8)
    assert wide != narrow
    assert narrow == pytest.approx(wide, rel=0.02)
    one = trainer(precision="bfloat16")
    one.train_step()
    assert all(p.dtype == torch.float32 for p in one.model.parameters())


def test_training_lowers_the_loss() -> None:
    found = losses(trainer(lr=0.01, schedule="constant"), 40)
    assert sum(found[-5:]) < 0.75 * sum(found[:5])


def test_the_report_says_what_was_computed() -> None:
    one = trainer(warmup=0.5)
    batch = one.stream.at(0)
    expected = {}
    with torch.no_grad():
        for group in batch.groups:
            logits = one.model(torch.from_numpy(group.inputs_bl))
            targets = torch.from_numpy(group.targets_bl)
            asked = targets != IGNORE
            expected[group.source] = (
                -F.log_softmax(logits[asked], -1).gather(1, targets[asked][:, None]).mean().item()
            )
    report = one.train_step()
    assert report.step == 1
    assert report.lr == pytest.approx(one.spec.lr / 5)
    assert set(report.losses) == {group.source for group in batch.groups}
    for name, loss in expected.items():
        assert report.losses[name] == pytest.approx(loss, rel=1e-5)
    mixed = sum(group.weight * expected[group.source] for group in batch.groups)
    assert report.loss == pytest.approx(mixed, rel=1e-5)


def test_a_step_is_that_of_adamw_on_the_clipped_gradient() -> None:
    one = trainer(clip=0.01, weight_decay=0.1, warmup=0.0)
    twin = compile_model(SPEC, seed=0)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in twin.parameters() if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in twin.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=one.spec.lr,
        betas=one.spec.betas,
    )
    loss = torch.zeros(())
    for group in one.stream.at(0).groups:
        logits = twin(torch.from_numpy(group.inputs_bl))
        targets = torch.from_numpy(group.targets_bl)
        loss = loss + group.weight * F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE
        )
    loss.backward()
    assert nn.utils.clip_grad_norm_(twin.parameters(), 0.01) > 0.01
    optimizer.step()
    one.train_step()
    for found, truth in zip(one.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-6)


def test_only_matrices_decay() -> None:
    model = compile_model(SPEC)
    matrices, vectors = make_optimizer(model, TrainingSpec(weight_decay=0.1)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith(("weight", "logits")) for p in matrices["params"])
    assert {"layers.1.layer.A_log", "layers.1.layer.dt_bias", "layers.1.layer.D", "final_norm.weight"} <= {
        names[id(p)] for p in vectors["params"]
    }
    assert len(matrices["params"]) + len(vectors["params"]) == len(names)


def test_a_diverging_run_stops_with_its_cause() -> None:
    one = trainer(lr=1e9, warmup=0.0, clip=1e9, schedule="constant")
    with pytest.raises(TrainingFailed) as caught:
        losses(one, 50)
    assert caught.value.kind in ("non-finite loss", "non-finite gradient")
    assert caught.value.step == one.step
    assert f"at step {one.step}: " in str(caught.value)
    assert "lr 1e+09" in str(caught.value)


def test_a_failed_step_leaves_the_weights_alone() -> None:
    one: Any = trainer()
    one.train_step()
    with torch.no_grad():
        next(iter(one.model.parameters()))[0, 0] = torch.nan
        one.model.embedding.weight.fill_(torch.inf)
    before = weights(one)
    with pytest.raises(TrainingFailed):
        one.train_step()
    after = weights(one)
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)
    assert one.step == 1


def test_a_gradient_that_is_not_finite_stops_it_too() -> None:
    class Steep(nn.Module):
        """A finite loss whose slope is not: sqrt at 0."""

        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.zeros(1))

        def forward(self, ids_bl: torch.Tensor, call: Call) -> torch.Tensor:
            return torch.zeros(*ids_bl.shape, 384) + self.x.sqrt()[..., None] * torch.arange(384)

    one = trainer()
    steep = Trainer(Steep(), one.stream, one.spec)
    with pytest.raises(TrainingFailed, match="non-finite gradient at step 0"):
        steep.train_step()


def test_failures_cross_processes() -> None:
    error = TrainingFailed("non-finite loss", "the loss is nan at lr 0.1", 7)
    again = pickle.loads(pickle.dumps(error))
    assert (again.kind, again.message, again.step, str(again)) == (
        "non-finite loss",
        "the loss is nan at lr 0.1",
        7,
        "non-finite loss at step 7: the loss is nan at lr 0.1",
    )


def test_sources_weigh_by_tokens_not_by_targets() -> None:
    """A source with few questions is not drowned by one that asks everywhere."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 256, (2, 8))
    rare = np.full((2, 8), IGNORE)
    rare[:, -1] = ids[:, 0]

    class Two:
        def at(self, step: int) -> StepBatch:
            return StepBatch((Group("text", ids, ids, 0.5), Group("recall", ids, rare, 0.5)), 32)

    one = trainer()
    report = Trainer(one.model, Two(), one.spec).train_step()  # type: ignore[arg-type]
    assert report.loss == pytest.approx(0.5 * report.losses["text"] + 0.5 * report.losses["recall"], rel=1e-6)
