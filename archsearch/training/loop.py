"""The training loop.

Shape suffixes: b sequence, l position, v vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.compiler.loss import cross_entropy
from archsearch.data import IGNORE, Group, MixtureStream
from archsearch.mixers.base import Call
from archsearch.mixers.kernels import Kernels
from archsearch.mixers.moe import rebalance
from archsearch.training.errors import TrainingFailed
from archsearch.training.graphs import RecordedPasses, recordable
from archsearch.training.schedule import learning_rate
from archsearch.training.spec import TrainingSpec


@dataclass(frozen=True)
class StepReport:
    """One optimiser step: its mixture loss and each source's own loss (nats a target token), and the rate.

    Language-model losses alone: what the layers add to them is left out.
    """

    step: int
    loss: float
    losses: dict[str, float]
    lr: float


class Trainer:
    """Trains `model` on `stream`. Everything that decides the next step is in `state()`.

    passes: on a GPU, the model's passes as CUDA graphs; None where they run kernel by kernel.
    """

    def __init__(self, model: nn.Module, stream: MixtureStream, spec: TrainingSpec, device: str = "cpu"):
        self.model = model
        self.stream = stream
        self.spec = spec
        self.device = torch.device(device)
        self.kernels = getattr(model, "kernels", Kernels())
        self.step = 0
        self.optimizer = make_optimizer(model, spec)
        self.passes = RecordedPasses(model, self._autocast) if recordable(model, self.device) else None

    def train_step(self) -> StepReport:
        """One optimiser step. Raises `TrainingFailed` where the loss or the gradient is not finite."""
        lr = learning_rate(self.spec, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss, auxiliary, losses = self._loss(self.stream.at(self.step).groups)
        self._backward(loss + auxiliary)
        total_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.spec.clip)
        value, norm, *parts = _on_host([loss, total_norm, *losses.values()])
        if not math.isfinite(value):
            raise TrainingFailed("non-finite loss", f"the loss is {value} at lr {lr:.3g}", self.step)
        if not math.isfinite(norm):
            raise TrainingFailed("non-finite gradient", f"its norm is {norm} at lr {lr:.3g}", self.step)
        self.optimizer.step()
        rebalance(self.model)
        self.step += 1
        return StepReport(self.step, value, dict(zip(losses, parts, strict=True)), lr)

    def _loss(self, groups: tuple[Group, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """sum_s share_s * mean cross-entropy of source s: a source weighs what it has of the tokens, however
        few of them bear a loss. Apart from it, what the layers add, weighed by tokens too."""
        by_length: dict[int, list[Group]] = defaultdict(list)
        for group in groups:
            by_length[group.inputs_bl.shape[1]].append(group)
        # Sequences of one length go through the model together.
        together = [
            (same, torch.cat([self._on_device(group.inputs_bl) for group in same]))
            for same in by_length.values()
        ]
        if self.passes is not None:
            self.passes.prepare(inputs_bl for _, inputs_bl in together)
        losses: dict[str, Tensor] = {}
        auxiliary = torch.zeros(())
        for same, inputs_bl in together:
            logits_blv, layers_losses = self._pass(inputs_bl)
            for added in layers_losses:
                auxiliary = auxiliary + sum(group.weight for group in same) * added
            rows = logits_blv.split([len(group.inputs_bl) for group in same])
            for group, part_blv in zip(same, rows, strict=True):
                targets = self._on_device(group.targets_bl).flatten()
                losses[group.source] = cross_entropy(
                    part_blv.flatten(0, 1), targets, ignore=IGNORE, kernels=self.kernels
                )
        total = sum((group.weight * losses[group.source] for group in groups), torch.zeros(()))
        return total, auxiliary, {name: loss.detach() for name, loss in losses.items()}

    def _pass(self, inputs_bl: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and what the layers add to the loss."""
        call = Call()
        if self.passes is not None:
            return self.passes(inputs_bl, call), call.losses
        with self._autocast():
            return self.model(inputs_bl, call), call.losses

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _on_device(self, ids: Any) -> Tensor:
        return torch.from_numpy(ids).to(self.device)

    def _autocast(self) -> Any:
        enabled = self.spec.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def make_optimizer(model: nn.Module, spec: TrainingSpec) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, not on norms, biases, decay rates and other vectors."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, fused=True)


def _on_host(scalars: Sequence[Tensor]) -> list[float]:
    """All of them in one transfer: each would wait for the device."""
    found: list[float] = torch.stack([scalar.detach().double() for scalar in scalars]).tolist()
    return found
