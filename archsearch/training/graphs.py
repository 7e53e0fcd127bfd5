"""Forward and backward passes as CUDA graphs: one launch a pass, in the place of one a kernel.

The host takes longer to launch a small model's kernels than a GPU to run them. Replayed as a graph they
follow each other at once, and the branches of parallel blocks do run beside each other.

Shape suffixes: b sequence, l position, v vocabulary.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from archsearch.compiler.recording import first_cause, on_this_stream, tables_of
from archsearch.mixers.base import Call, Mixer

MOST_SHAPES = 8
"""Each recorded shape of batch keeps the memory of its passes."""


def recordable(model: nn.Module, device: torch.device) -> bool:
    """Whether what the model launches there depends on the shape of its input alone."""
    mixers = (module for module in model.modules() if isinstance(module, Mixer))
    return device.type == "cuda" and all(mixer.recordable for mixer in mixers)


class RecordedPasses:
    """A model's logits, whose forward and backward passes are recorded once a shape and replayed.

    A shape's first pass runs kernel by kernel, which has them tuned and tells what memory they need; before
    its second, `prepare` records it where there is room. What cannot be recorded goes on kernel by kernel:
    `refused` says why. Logits, and gradients with respect to parameters, are overwritten by the next pass.
    A replay reads parameters where they were when it was recorded: they must stay in place.
    """

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]):
        self.model = model
        self.refused: str | None = None
        self._autocast = autocast
        self._seen: Counter[torch.Size] = Counter()
        self._recorded: dict[torch.Size, _Pass] = {}

    def prepare(self, batches_bl: Iterable[Tensor]) -> None:
        """Record what came before among the batches of the step to come. No pass may be under way: parameters
        that it reads are bound to the current stream until its backward pass is over, and no recording can
        reach into that."""
        for ids_bl in batches_bl:
            if ids_bl.shape not in self._recorded and self._is_time_for(ids_bl):
                self._record(ids_bl)

    def __call__(self, ids_bl: Tensor, call: Call | None = None) -> Tensor:
        """call: carries auxiliary losses out; a model whose layers have some is never recorded."""
        shape, call = ids_bl.shape, Call() if call is None else call
        self._seen[shape] += 1
        logits_blv: Tensor
        if shape in self._recorded:
            logits_blv = self._recorded[shape](ids_bl)
            return logits_blv
        with self._autocast():
            logits_blv = self.model(ids_bl, call)
        if call.losses:
            self.refused = "layers add to the loss"
        return logits_blv

    def told(self) -> dict[str, Any]:
        """How many shapes of batch are recorded, and why no others, for a run's record."""
        return {"shapes": len(self._recorded), **({"refused": self.refused} if self.refused else {})}

    def make_room(self) -> None:
        """Before other work, that needs about as much memory as training does, on a GPU that has no more."""
        if self._recorded and torch.cuda.mem_get_info()[0] < torch.cuda.memory_reserved():
            self.release()

    def release(self) -> None:
        """Give back the memory; shapes are recorded again when they come again."""
        self._recorded.clear()
        self._seen.clear()
        torch.cuda.empty_cache()

    def _is_time_for(self, ids_bl: Tensor) -> bool:
        if self.refused is not None or not self._seen[ids_bl.shape] or len(self._recorded) >= MOST_SHAPES:
            return False
        # What a recording keeps, other shapes and other work cannot have: as much again must be left.
        device, held = ids_bl.device, torch.cuda.memory_allocated(ids_bl.device)
        room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
        return room > 2 * (torch.cuda.max_memory_allocated(device) - held)

    def _record(self, ids_bl: Tensor) -> None:
        if not self._recorded:
            # A pass that is over, but kept by a cycle of Python objects, binds parameters too. From the first
            # recording on they are bound to its stream, which torch would warn of.
            gc.collect()
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        run = _Pass(self.model, self._autocast)
        try:
            # Parameters that no pass reaches have no gradient, here as elsewhere.
            with on_this_stream(ids_bl.device):
                torch.cuda.make_graphed_callables(run, (ids_bl.clone(),), allow_unused_input=True)
        except RuntimeError as error:  # out of memory, or a kernel that cannot be recorded
            self.refused = first_cause(error)
            torch.cuda.empty_cache()
            return
        run.reads = tables_of([self.model])
        self._recorded[ids_bl.shape] = run


class _Pass(nn.Module):
    """The model's logits under autocast; a module of its own for each shape, around the same parameters.

    reads: the tables that layers keep.
    """

    def __init__(self, model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]):
        super().__init__()
        self.reads: list[Tensor] = []
        self.model = model
        self._autocast = autocast

    def forward(self, ids_bl: Tensor) -> Tensor:
        with self._autocast():
            logits_blv: Tensor = self.model(ids_bl, Call())
        return logits_blv
