"""The norm and the loss by kernels: the same model, and where its input is rounded."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mixers.serving import Serving, served
from torch import Tensor

from archsearch.compiler.build import _initialise
from archsearch.compiler.loss import cross_entropy
from archsearch.compiler.model import LanguageModel
from archsearch.mixers.kernels import Kernels
from archsearch.spec import ModelSpec

LAYERS: list[Any] = [
    {"parallel": {"branches": [{"mamba2": {"head_dim": 8}}, {"attention": {"heads": 2}}], "merge": "sum"}},
    {"mlp": {"expand": 1}},
    {"moe": {"experts": 2, "top_k": 1}},
    {"sequential": {"layers": [{"mlp": {"expand": 1}}]}},
    {"mlp": {"expand": 1, "norm": "entry"}},
    {"mlp": {"expand": 1}},
    {"mlp": {"expand": 1, "norm": "sandwich"}},
    {"mlp": {"expand": 1, "out_scale": 0.5}},
    {"mlp": {"expand": 1, "id": "twice"}},
    {"mlp": {"expand": 1}},
    {"share": "twice"},
]
SPEC = ModelSpec.model_validate({"d_model": 16, "vocab_size": 11, "layers": LAYERS})
IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
TARGETS = torch.where(IDS == 3, -100, IDS.roll(-1, 1)).flatten()


ADDED: list[bool] = []


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, added: Tensor | None
) -> tuple[Tensor, Tensor]:
    ADDED.append(added is not None)
    x = x.view_as(x) if added is None else x + added
    return F.rms_norm(x, x.shape[-1:], weight, eps).to(dtype), x


def entropy(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=ignore)


def model_of(kernels: Kernels) -> LanguageModel:
    model = LanguageModel(SPEC, kernels)
    _initialise(model, torch.Generator().manual_seed(0))
    return model


def results(model: LanguageModel) -> list[Tensor]:
    loss = cross_entropy(model(IDS).flatten(0, 1), TARGETS, ignore=-100, kernels=model.kernels)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def test_a_model_with_the_kernels_is_the_model_without() -> None:
    served_kernels = Serving(served("norm", rms_norm), served("cross_entropy", entropy))
    ADDED.clear()
    found = results(model_of(served_kernels))
    # Not where a layer reads float32 (the third to the fifth), nor after one that scales or norms what it
    # adds, or a shared one that is also the last. At the end, the logits' own.
    assert ADDED == [False, True, True, True, False, False, False, True, False]
    for mine, plain in zip(found, results(model_of(Kernels())), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def test_only_layers_that_round_their_input_get_it_rounded() -> None:
    model = model_of(Serving(served("norm", rms_norm)))
    read: list[torch.dtype] = []
    for layer in dict.fromkeys(block.layer for block in model.layers):
        layer.register_forward_pre_hook(lambda module, given: read.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(IDS)
    half, wide = torch.bfloat16, torch.float32
    assert read[:5] == [half, half, wide, wide, wide]
    trained, read[:] = list(read), []
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(IDS)
    # Without gradients, torch's kernel norms what no sum comes before: in float32.
    assert read[:5] == [wide, half, wide, wide, wide]
    assert all(now in (before, wide) for now, before in zip(read, trained, strict=True))


def test_steps_leave_sums_to_the_norm_after_them() -> None:
    model, plain = model_of(Serving(served("norm", rms_norm))), model_of(Kernels())
    with torch.no_grad():
        _, state = model.prefill(IDS)
        _, expected_state = plain.prefill(IDS)
        ADDED.clear()
        found, _ = model.step(IDS[:, 0], state)
        assert ADDED == [True, True, True, True]  # as in `forward`
        torch.testing.assert_close(found, plain.step(IDS[:, 0], expected_state)[0])
