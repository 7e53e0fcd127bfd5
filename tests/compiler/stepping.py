"""Steps recorded without a GPU: work that is done again stands in for a CUDA graph, in memory of its own."""

from __future__ import annotations

from typing import Any

import torch
from mixers.serving import Serving, attend_in_place, served
from torch import Tensor

from archsearch import compile_model
from archsearch.compiler import LanguageModel, steps
from archsearch.compiler.build import _initialise
from archsearch.compiler.model import ModelState
from archsearch.compiler.recording import Recording
from archsearch.compiler.steps import kernel_by_kernel
from archsearch.mixers.kernels import Kernels
from archsearch.spec import ModelSpec


class Again:
    """In the place of a CUDA graph: work that is done again, and what it returns written where it was.

    made: of how many tensors each step is; running: whether one is at it, as when a stream is captured.
    """

    made: list[int]
    error: Exception | None
    running: bool

    def __init__(self, work: Any, device: torch.device):
        if Again.error is not None:
            raise Again.error
        self.work = work
        self.found = self._again()

    def __call__(self) -> None:
        for tensor, now in zip(self.found, self._again(), strict=True):
            tensor.copy_(now)

    def _again(self) -> list[Tensor]:
        Again.running = True
        try:
            with torch.no_grad():
                found: list[Tensor] = self.work()
        finally:
            Again.running = False
        return found


class Noted(Recording):
    def __init__(self, run: Any, given: list[Tensor]):
        super().__init__(run, given)
        Again.made.append(len(given))


def may_replay(x_bd: Tensor) -> bool:
    """As on a GPU."""
    return steps._replaying.get() and not (Again.running or torch.is_grad_enabled())


SERVING = Serving(served("cached_attention", attend_in_place))


def model_of(
    *layers: Any, d_model: int = 32, device: str = "cpu", kernels: Kernels = SERVING, **fields: Any
) -> LanguageModel:
    given = {"tokenizer": "bytes", "d_model": d_model, "layers": list(layers), **fields}
    spec = ModelSpec.model_validate(given)
    if device != "cpu":
        return compile_model(spec, device=device).eval()
    model = LanguageModel(spec, kernels)
    _initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


@torch.no_grad()
def continued(
    model: LanguageModel,
    batch: int = 2,
    prompt: int = 5,
    tokens: int = 6,
    state: ModelState | None = None,
    donate: bool = False,
) -> Tensor:
    """Logits of tokens after a prompt, by steps. donate: all states but the first."""
    device = model.embedding.weight.device
    ids_bl = torch.randint(256, (batch, prompt + tokens), generator=torch.Generator().manual_seed(prompt))
    ids_bl = ids_bl.to(device)
    if state is None:
        _, state = model.prefill(ids_bl[:, :prompt])
    found = []
    for i, ids_b in enumerate(ids_bl[:, prompt:].unbind(1)):
        logits_bv, state = model.step(ids_b, state, donate=donate and i > 0)
        found.append(logits_bv)
    return torch.stack(found, 1)


def plain(model: LanguageModel, **given: Any) -> Tensor:
    """The same without recordings."""
    with kernel_by_kernel():
        return continued(model, **given)
