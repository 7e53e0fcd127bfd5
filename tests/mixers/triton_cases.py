"""mamba_ssm's Triton kernels under Triton's interpreter, on a CPU, behind the calls that CUDA gets.

Run by test_triton_interpreter in a process of its own: the interpreter must be on before Triton is imported,
and what a CPU lacks is put in its place below. Prints a JSON object: case -> largest relative error of
results and gradients against float64.

Shape suffixes: as in `archsearch.mixers.kernels.calls`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch.mixers.base import Surroundings
from archsearch.mixers.kernels import Choice, calls, trial
from archsearch.mixers.mamba2 import Mamba2Mixer
from archsearch.mixers.ssd import ssd_step
from archsearch.spec.layers import Mamba2


def stand_in_for_cuda() -> None:
    """The package without its __init__, which loads CUDA extensions; the device that kernels ask about."""
    package = types.ModuleType("mamba_ssm")
    found = find_spec("mamba_ssm")
    assert found is not None
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["mamba_ssm"] = package
    properties = types.SimpleNamespace(multi_processor_count=4, major=9, minor=0)
    torch.cuda.device = lambda _: contextlib.nullcontext()  # type: ignore[misc,assignment]
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]


def kernels_of(module: str) -> types.ModuleType:
    return importlib.import_module(f"mamba_ssm.ops.triton.{module}")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(
    run: Callable[..., tuple[Tensor, ...]],
    truth: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    gradients: bool = True,
) -> float:
    """The largest error of results and, with random weights on all results, of gradients."""
    wide = [t.float().double().requires_grad_(gradients) for t in inputs]
    narrow = [t.float().requires_grad_(gradients) for t in inputs]
    expected, found = truth(*wide), run(*narrow)
    pairs = list(zip(found, expected, strict=True))
    if gradients:
        dy = [random(*e.shape, seed=99) for e in expected]
        wanted = torch.autograd.grad(expected, wide, dy)
        got = torch.autograd.grad(found, narrow, [d.float() for d in dy])
        pairs += zip(got, wanted, strict=True)
    return max(float((f.double() - e).detach().norm() / e.detach().norm()) for f, e in pairs)


LENGTH, HEADS, HEAD_DIM, GROUPS, STATE, CHUNK = 24, 2, 16, 2, 16, 16


def scan_inputs() -> list[Tensor]:
    b, bc = 2, (2, LENGTH, GROUPS, STATE)
    dt, A = random(b, LENGTH, HEADS, seed=1), random(HEADS, seed=2)
    x, D = random(b, LENGTH, HEADS, HEAD_DIM, seed=0), random(HEADS, seed=5)
    initial = random(b, HEADS, HEAD_DIM, STATE, seed=6)
    return [x, F.softplus(dt), -A.exp(), random(*bc, seed=3), random(*bc, seed=4), D, initial]


def scanned(
    documents_bl: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Token by token, from a state; a new document starts from nothing."""
    ys = []
    for t in range(x.shape[1]):
        if t:
            same = documents_bl[:, t] == documents_bl[:, t - 1]
            state = state * same[:, None, None, None]
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], state)
        ys.append(y + D[:, None] * x[:, t])
    return torch.stack(ys, 1), state


def ssd(documents: bool) -> float:
    kernel = kernels_of("ssd_combined").mamba_chunk_scan_combined
    which = torch.zeros(2, LENGTH, dtype=torch.int32)
    if documents:
        which[0, 13:], which[1, 16:], which[1, 20:] = 1, 1, 2

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        shared = {"documents_bl": which} if documents else {"initial_bhpn": given[-1]}
        y, last = calls.ssd(kernel, *given[:-1], chunk=CHUNK, **shared)
        # With documents, the kernel's last state has no backward pass of its own.
        return (y,) if documents else (y, last)  # type: ignore[return-value]

    inputs = scan_inputs()
    if documents:
        start = torch.zeros_like(inputs[-1])
        truth: Any = lambda *given: scanned(which, *given, start)[:1]  # noqa: E731
        return worst(lambda *given: run(*given, start), truth, inputs[:-1])
    return worst(run, partial(scanned, which), inputs)


def selective_scan_step() -> float:
    """With the trial's own inputs, in float32."""
    call = partial(calls.selective_scan_step, kernels_of("selective_state_update").selective_state_update)
    return trial.largest_error(trial.TRIALS["selective_scan_step"], call, "cpu", torch.float32)


def convolution_without_cuda(module: types.ModuleType) -> None:
    """causal_conv1d's two functions, which the kernel of a whole layer calls, by torch."""

    def forward(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight))
        return F.silu(y) if rest[-1] else y

    def backward(x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor, *rest: Any) -> tuple[Any, ...]:
        dx = rest[3]
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
            found = torch.autograd.grad(forward(*leaves, rest[-1]), leaves, dout)
        return (found[0] if dx is None else dx.copy_(found[0]), *found[1:], None)

    module.causal_conv1d_fwd_function = forward  # type: ignore[attr-defined]
    module.causal_conv1d_bwd_function = backward  # type: ignore[attr-defined]


def whole_layer(**fields: Any) -> float:
    """Our layer with the kernel of a whole layer, against itself in float64 without."""
    module = kernels_of("ssd_combined")
    convolution_without_cuda(module)
    spec = Mamba2(d_state=STATE, head_dim=HEAD_DIM, **fields).resolve(32)
    own, truth = Mamba2Mixer(spec, Surroundings(32)), Mamba2Mixer(spec, Surroundings(32))
    truth = truth.double()
    truth.reset_parameters(torch.Generator().manual_seed(0))
    own.load_state_dict(truth.state_dict())
    truth.load_state_dict(own.state_dict())
    call = partial(calls.mamba2, module.mamba_split_conv1d_scan_combined)
    own.layer_kernel = Choice("mamba2", "interpreted", "a test", call, ("torch.float32",), "cpu")
    x, dy = random(1, LENGTH, 32, seed=7).float(), random(1, LENGTH, 32, seed=8).float()
    found, expected = own(x), truth(x.double())
    got = [found, *torch.autograd.grad(found, list(own.parameters()), dy)]
    wanted = [expected, *torch.autograd.grad(expected, list(truth.parameters()), dy.double())]
    return max(
        float((g.double() - w).detach().norm() / w.detach().norm()) for g, w in zip(got, wanted, strict=True)
    )


CASES: dict[str, Callable[[], float]] = {
    "ssd from a state": lambda: ssd(documents=False),
    "ssd of documents": lambda: ssd(documents=True),
    "selective scan step": selective_scan_step,
    "mamba2": lambda: whole_layer(),
    "mamba2 norm first, groups": lambda: whole_layer(groups=2, gated_norm="before"),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    stand_in_for_cuda()
    for module in ("ssd_combined", "selective_state_update", "layernorm_gated"):
        kernels_of(module)
    with trial.untuned("mamba_ssm"):
        print(json.dumps({name: CASES[name]() for name in sys.argv[1:] or CASES}))
