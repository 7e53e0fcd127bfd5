"""Training with experts: what balances them reaches the weights, but neither the reported loss nor chance.

Shape suffixes: b sequence, l position, e experts.
"""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch import compile_model
from archsearch.data import DataSpec, MixtureStream
from archsearch.mixers.base import Call
from archsearch.spec import ModelSpec
from archsearch.training.loop import Trainer
from archsearch.training.spec import TrainingSpec


def trainer(steps: int = 8, **moe: Any) -> Trainer:
    """A small model with experts, on sequences of two lengths, which go through it one after another."""
    layer = {"experts": 6, "hidden": 8, **moe}
    spec = ModelSpec.model_validate(
        {"tokenizer": "bytes", "d_model": 16, "layers": [{"attention": {"heads": 2}}, {"moe": layer}]}
    )
    training = TrainingSpec(tokens=256 * steps, context=64, tokens_per_step=256)
    data = DataSpec(mixture={"reference": 3, "mqar": 1})
    stream = MixtureStream(data, context=64, tokens_per_step=256, seed=0)
    return Trainer(compile_model(spec), stream, training)


def router_of(one: Trainer) -> Any:
    return one.model.get_submodule("layers.1.layer.router")


def weights(one: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in one.model.state_dict().items()}


def test_the_balance_loss_is_trained_on_but_not_reported() -> None:
    free, bound = trainer(balance=0), trainer(balance=100.0)
    assert len({group.inputs_bl.shape[1] for group in free.stream.at(0).groups}) == 2
    assert free.train_step().loss == bound.train_step().loss
    found = weights(bound)
    assert any(not torch.equal(tensor, found[name]) for name, tensor in weights(free).items())


def test_added_losses_weigh_by_tokens() -> None:
    """The gradient is that of the mixture's loss plus each forward pass's own loss, by its tokens."""
    one = trainer(balance=0.3)
    with_it, without = [trainer(balance=balance) for balance in (0.3, 0)]
    gradients = []
    for each in (with_it, without):
        loss, auxiliary, _ = each._loss(each.stream.at(0).groups)
        gradients.append(torch.autograd.grad(loss + auxiliary, router_of(each).weight)[0])
    truth = torch.zeros(())
    groups = one.stream.at(0).groups
    for group in groups:
        call = Call()
        one.model(torch.from_numpy(group.inputs_bl), call)
        truth = truth + group.weight * call.losses[0]
    assert sum(group.weight for group in groups) == pytest.approx(1)
    expected = torch.autograd.grad(truth, router_of(one).weight)[0]
    torch.testing.assert_close(gradients[0] - gradients[1], expected, rtol=1e-3, atol=1e-6)


def test_selection_biases_move_once_a_step() -> None:
    one = trainer(selection_bias=True, bias_rate=0.01)
    assert not router_of(one).selection_bias.any()
    one.train_step()
    moved_e = router_of(one).selection_bias
    assert moved_e.any()
    assert set(moved_e.tolist()) <= {0.0, *torch.tensor([0.01, -0.01]).tolist()}
    assert not router_of(one).load_e.any()
    one.train_step()
    assert moved_e.abs().max() <= 0.02


@pytest.mark.parametrize(
    "moe", [{}, {"selection_bias": True, "bias_rate": 0.05, "router": "sigmoid"}], ids=str
)
def test_an_interrupted_run_is_an_undisturbed_one(moe: dict[str, Any]) -> None:
    through, stopped, resumed = (trainer(**moe) for _ in range(3))
    truth = [through.train_step().loss for _ in range(6)]
    for _ in range(3):
        stopped.train_step()
    # What an evaluation would do in between.
    with torch.no_grad():
        stopped.model(torch.arange(64)[None])
    resumed.restore(pickle.loads(pickle.dumps(stopped.state())))
    assert [resumed.train_step().loss for _ in range(3)] == truth[3:]
    assert [stopped.train_step().loss for _ in range(3)] == truth[3:]
    for one in (resumed, stopped):
        found = weights(one)
        assert all(torch.equal(tensor, found[name]) for name, tensor in weights(through).items())
