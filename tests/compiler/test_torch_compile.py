"""torch.compile of a model gives what the model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.compiler import compile_model
from archsearch.spec import ModelSpec

BRANCHES: list[Any] = [{"mamba2": {"head_dim": 8}}, {"attention": {"heads": 2, "window": 5}}]
LAYERS: list[Any] = [{"parallel": {"branches": BRANCHES, "merge": "sum"}}, {"mlp": {"expand": 1}}]


@pytest.fixture
def fresh_compiler() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_compiled_models_give_the_same(fresh_compiler: None) -> None:
    model = compile_model(ModelSpec.model_validate({"d_model": 16, "vocab_size": 11, "layers": LAYERS}))
    ids = torch.randint(11, (2, 70), generator=torch.Generator().manual_seed(0))

    def results(run: Any) -> list[Tensor]:
        y = run(ids)
        return [y.detach(), *torch.autograd.grad(y.square().mean(), list(model.parameters()))]

    found = results(torch.compile(model, backend="aot_eager"))
    for mine, plain in zip(found, results(model), strict=True):
        torch.testing.assert_close(mine, plain, rtol=2e-3, atol=1e-5 * float(plain.abs().max()) + 1e-8)
