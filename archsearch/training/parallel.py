"""Data parallelism: several processes train one model, each on a part of every step's sequences.

Every process makes the whole step's batch, which is cheap and needs no messages, and takes its rows of it.
Weighted by how many of the targets they hold, the parts' losses and gradients add up to those of the whole:
a run's course is that of one process, to rounding. Only what routers add to the loss to balance their experts
is worked out for each part by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from archsearch.data import IGNORE, Group
from archsearch.mixers.moe import Router
from archsearch.training.loop import Trainer


@dataclass(frozen=True)
class Share:
    """This process's part of the work: `rank` of `workers`, which have a process group of torch's."""

    rank: int
    workers: int

    def part(self, group: Group) -> Group:
        """The rows of this process. The weights of all parts add up to the group's."""
        inputs_bl, targets_bl = (
            rows[self.rank :: self.workers] for rows in (group.inputs_bl, group.targets_bl)
        )
        asked = int((group.targets_bl != IGNORE).sum())
        weight = group.weight * int((targets_bl != IGNORE).sum()) / max(1, asked)
        return replace(group, inputs_bl=inputs_bl, targets_bl=targets_bl, weight=weight)

    def agree(self, value: int, device: str) -> int:
        """The value of the first process, for all."""
        found = torch.tensor(value, device=device)
        dist.broadcast(found, 0)
        return int(found)


class ShardedTrainer(Trainer):
    """A `Trainer` that takes every step together with the other processes of its `share`."""

    def __init__(self, *arguments: Any, share: Share):
        super().__init__(*arguments)
        self.share = share
        self.passes = None  # NCCL's own thread asks the GPU for its state, which ends a recording under way

    def _loss(self, groups: tuple[Group, ...]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The value is that of all parts, the gradient that of this one."""
        parts = [part for part in map(self.share.part, groups) if part.weight > 0]
        local, auxiliary, losses = super()._loss(tuple(parts))
        if not local.requires_grad:
            local = local + 0.0 * next(self.model.parameters()).sum()
        held = {part.source: part.weight for part in parts}
        means = torch.zeros(len(groups), dtype=torch.float64, device=self.device)
        for i, group in enumerate(groups):
            if group.source in held:
                means[i] = losses[group.source].double() * (held[group.source] / group.weight)
        dist.all_reduce(means)
        whole = sum(
            (group.weight * mean for group, mean in zip(groups, means, strict=True)), means.new_zeros(())
        )
        value = local + (whole.to(local) - local).detach()
        return value, auxiliary, {group.source: mean for group, mean in zip(groups, means, strict=True)}

    def _backward(self, loss: Tensor) -> None:
        super()._backward(loss)
        parameters = list(self.model.parameters())
        reached = torch.tensor(
            [p.grad is not None for p in parameters], dtype=torch.int32, device=self.device
        )
        dist.all_reduce(reached)
        shared = [p for p, count in zip(parameters, reached.tolist(), strict=True) if count]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in shared])
        dist.all_reduce(flat)
        for p, gradient in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
            p.grad = gradient.view_as(p)
        for module in self.model.modules():
            if isinstance(module, Router) and module.selection_bias is not None:
                dist.all_reduce(module.load_e)
