"""The package's own Triton kernels under Triton's interpreter, on a CPU.

Run by test_own_triton in a process of its own: the interpreter must be on before Triton is imported. Prints a
JSON object: case -> largest relative error of results and gradients against float64.
"""

from __future__ import annotations

import json
import types
from typing import Any

import torch
import torch.nn.functional as F
from compiler.stepping import Again, continued, may_replay, model_of
from torch import Tensor

from archsearch.compiler import recording
from archsearch.compiler import steps as steps_module
from archsearch.compiler.steps import kernel_by_kernel, told
from archsearch.mixers.attend import explicit_attention
from archsearch.mixers.base import Call, Surroundings
from archsearch.mixers.kernels.triton_cached import attend_in_place
from archsearch.mixers.kernels.triton_gate import gated_rms_norm
from archsearch.mixers.kernels.triton_loss import cross_entropy
from archsearch.mixers.kernels.triton_norm import rms_norm_beside
from archsearch.mixers.kernels.triton_rope import rotate
from archsearch.mixers.kernels.triton_steps import conv_step, ssd_step
from archsearch.mixers.kernels.triton_swiglu import swiglu
from archsearch.mixers.mamba2 import Mamba2Mixer
from archsearch.mixers.norms import RMSNorm
from archsearch.mixers.short_conv import ShortConv
from archsearch.spec.layers import Mamba2
from mixers.serving import Serving, served

IGNORE = -100


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((f.double() - e).detach().norm() / e.detach().norm()) for f, e in pairs)


def norm(
    *,
    both: bool,
    added: torch.dtype | None = None,
    rows: int = 37,
    width: int = 100,
    transposed: bool = False,
) -> float:
    """both: also the input goes on, as in a residual block. added: dtype of what is added to it first."""
    x, weight = random(rows, 3, width, seed=0), random(width, seed=1)
    x = x.transpose(0, 1) if transposed else x
    dy, dx = random(*x.shape, seed=2), random(*x.shape, seed=3)
    extra = [] if added is None else [random(*x.shape, seed=4).to(added)]

    def results(x: Tensor, weight: Tensor, own: bool) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, weight, *extra)]
        if own:
            y, going_on = rms_norm_beside(leaves[0], leaves[1], 1e-5, torch.float32, *leaves[2:])
        else:
            going_on = sum(leaves[2:], leaves[0])
            y = F.rms_norm(going_on, x.shape[-1:], leaves[1], 1e-5)
        loss = (y * dy).sum() + ((going_on * dx).sum() if both else 0)
        return [y, *torch.autograd.grad(loss, leaves)]

    return error(results(x, weight, True), results(x.double(), weight.double(), False))


def loss(*, vocabulary: int, ignored: int) -> float:
    logits, targets = 5 * random(9, vocabulary, seed=0), torch.arange(9) * 7 % vocabulary
    logits[1], logits[2, 3] = -torch.inf, torch.inf
    logits[1, 7], logits[2] = 0.0, 100 * logits[2].nan_to_num(posinf=1.0)
    targets[:ignored] = IGNORE

    def results(logits: Tensor, own: bool) -> list[Tensor]:
        leaf = logits.clone().requires_grad_()
        found = cross_entropy(leaf, targets, IGNORE) if own else F.cross_entropy(leaf, targets)
        return [found, *torch.autograd.grad(3 * found, leaf)]

    return error(results(logits, True), results(logits.double(), False))


def rope(*, heads: int, width: int, pairs: int, interleaved: bool = False, packed: bool = False) -> float:
    """packed: heads are a view of a projection that holds more."""
    batch, length = 2, 5
    rows = random(batch, length, heads + 2 * packed, width, seed=0)
    cos, sin = (random(length, pairs, seed=seed) for seed in (1, 2))
    dy = random(batch, heads, length, width, seed=3)

    def results(rows: Tensor, own: bool) -> list[Tensor]:
        leaf = rows.clone().requires_grad_()
        x = leaf[:, :, :heads].transpose(1, 2)
        if own:
            y = rotate(x, cos, sin, interleaved)
            assert y.transpose(1, 2).is_contiguous()
        else:
            a, b = (
                (x[..., : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2])
                if interleaved
                else x[..., : 2 * pairs].chunk(2, -1)
            )
            turned = a * cos - b * sin, b * cos + a * sin
            first = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
            y = torch.cat([first, x[..., 2 * pairs :]], -1)
        # What comes back need not lie as what went out.
        return [y, *torch.autograd.grad((y.contiguous() * dy).sum(), leaf)]

    return error(results(rows, True), results(rows.double(), False))


def gated(*shape: int) -> float:
    up, dy = random(*shape, seed=0), random(*shape[:-1], shape[-1] // 2, seed=1)

    def results(up: Tensor, own: bool) -> list[Tensor]:
        leaf = up.clone().requires_grad_()
        gate, value = leaf.chunk(2, -1)
        y = swiglu(leaf) if own else F.silu(gate) * value
        return [y, *torch.autograd.grad((y * dy).sum(), leaf)]

    return error(results(up, True), results(up.double(), False))


def gate(*shape: int, groups: int = 1, norm_first: bool = False, transposed: bool = False) -> float:
    """The gate is a view of a projection that holds more."""
    x, wide = random(*shape, seed=0), random(*shape[:-1], shape[-1] + 3, seed=1)
    x, wide = (t.transpose(0, 1) if transposed else t for t in (x, wide))
    plain = RMSNorm(shape[-1], 1e-5, groups).double()
    with torch.no_grad():
        plain.weight.copy_(random(shape[-1], seed=2))
        silu = wide[..., 1:-2]
        y = gated_rms_norm(x, silu, plain.weight.float(), 1e-5, groups, norm_first)
        return error([y], [plain.gated(x.double(), silu.double(), norm_first=norm_first)])


def convolution(channels: int, width: int, *, bias: bool = True, silu: bool = True) -> float:
    plain = ShortConv(channels, width, bias=bias, silu=silu, kernels=Serving())
    plain.reset_parameters(torch.Generator().manual_seed(0))
    x, state = random(2, channels + 5, seed=0)[:, 2:-3], random(2, width - 1, channels, seed=1)
    weight, bias_c = plain.weight.detach(), plain.bias.detach() if plain.bias is not None else None
    with torch.no_grad():
        found = conv_step(x, state, weight, bias_c, silu)
        expected = plain.double().step(x.double(), state.double())
    assert torch.equal(state, random(2, width - 1, channels, seed=1))
    return error([t for t in found if t.numel()], [t for t in expected if t.numel()])


def steps(d_model: int = 32, bias: float = 0.0, donated: bool = False, **fields: Any) -> float:
    """Tokens of a layer one after another, all of whose kernels are these. bias: added to that of dt."""
    kernels = Serving(
        served("short_conv_step", conv_step),
        served("ssd_step", ssd_step),
        served("gated_norm", gated_rms_norm),
    )
    spec = Mamba2(**fields).resolve(d_model)
    own, truth = (
        Mamba2Mixer(spec, Surroundings(d_model, kernels=kernels)),
        Mamba2Mixer(spec, Surroundings(d_model)),
    )
    truth.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth.dt_bias += bias
        own.load_state_dict(truth.state_dict())
        truth = truth.double()
        x = random(2, 4, d_model, seed=0)
        y, state = own.prefill(x)
        wanted, its_state = truth.prefill(x.double())
        found, expected = [y], [wanted]
        for token in random(5, 2, d_model, seed=1):
            before = [t.clone() for t in state]
            y, after = own.step(token, state, Call(donated=donated))
            assert torch.equal(before[0], state[0])
            assert (state[1] is after[1]) if donated else torch.equal(before[1], state[1])
            wanted, its_state = truth.step(token.double(), its_state)
            found.append(y)
            expected.append(wanted)
            state = after
    return error([*found, *state], [*expected, *its_state])


def attended(
    held: int,
    *,
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    depth: int = 16,
    seen: int = 0,
    softcap: float | None = None,
    sinks: bool = False,
) -> float:
    """To a cache with room, of which no number before the first seen and behind the new one may count."""
    batch, capacity, scale = 2, held + 3, 0.3
    q = random(batch, heads, width, seed=0)
    k, v = random(batch, groups, capacity, width, seed=1), random(batch, groups, capacity, depth, seed=2)
    sink = random(heads, seed=3) if sinks else None
    k_all, v_all = (t[:, :, seen : held + 1].double() for t in (k, v))
    new = [t[:, :, held].clone() for t in (k, v)]
    for buffer in (k, v):
        buffer[:, :, held:] = buffer[:, :, :seen] = float("nan")
    place = torch.tensor([k.data_ptr(), v.data_ptr(), capacity, held, seen])
    y = attend_in_place(q, *new, place, scale, softcap, sink)
    assert all(torch.equal(buffer[:, :, held], token) for buffer, token in zip((k, v), new, strict=True))
    assert all(bool(buffer[:, :, held + 1 :].isnan().all()) for buffer in (k, v))
    given = q.double()[:, :, None], k_all, v_all, None
    forms: dict[str, Any] = {"softcap": softcap, "sinks_h": None if sink is None else sink.double()}
    return error([y], [explicit_attention(*given, scale=scale, **forms)[:, :, 0]])


def recorded(*, donate: bool) -> float:
    """Steps of a model as they are recorded, all of whose kernels are these (replays: see tests of steps)."""
    functions: dict[str, Any] = {
        "cached_attention": attend_in_place,
        "short_conv_step": conv_step,
        "ssd_step": ssd_step,
        "gated_norm": gated_rms_norm,
        "norm": rms_norm_beside,
        "rope": rotate,
        "swiglu": swiglu,
    }
    branches = [{"mamba2": {"head_dim": 8, "d_state": 8}}, {"attention": {"heads": 2, "window": 7}}]
    merge = {"cross_attention": {"heads": 2}}
    parallel = {"parallel": {"branches": branches, "merge": merge}}
    layers: list[Any] = [{"attention": {"heads": 4, "kv_heads": 2}}, parallel, "mlp"]
    own = model_of(*layers, kernels=Serving(*(served(*pair) for pair in functions.items())))
    truth = model_of(*layers, kernels=Serving()).double()
    Again.made, Again.error, Again.running = [], None, False
    steps_module.may_replay, recording.Graph = may_replay, Again  # type: ignore[assignment,misc]
    found = continued(own, tokens=9, donate=donate)
    assert told(own) == {"blocks": 3}
    with kernel_by_kernel():
        return error([found], [continued(truth, tokens=9)])


CASES = {
    "recorded steps": lambda: recorded(donate=False),
    "recorded steps, donated": lambda: recorded(donate=True),
    "cached attention": lambda: attended(150),
    "cached attention, many parts": lambda: attended(700, heads=1, groups=1),
    "cached attention, the first token": lambda: attended(0),
    "cached attention, in a window": lambda: attended(150, seen=71),
    "cached attention, itself alone": lambda: attended(150, seen=150),
    "cached attention, at a part's end": lambda: attended(128, heads=3, groups=3),
    "cached attention, widths, cap and sinks": lambda: attended(
        70, heads=6, groups=2, width=20, depth=12, softcap=2.0, sinks=True
    ),
    "gate": lambda: gate(3, 5, 100),
    "gate of groups, norm first": lambda: gate(3, 5, 96, groups=4, norm_first=True),
    "gate of transposed views": lambda: gate(3, 5, 24, transposed=True),
    "convolution's step": lambda: convolution(20, 4),
    "convolution's step, several blocks": lambda: convolution(300, 3, silu=False),
    "convolution's step without bias": lambda: convolution(8, 2, bias=False),
    "convolution's step, one tap": lambda: convolution(8, 1),
    "Mamba-2's steps": lambda: steps(head_dim=16, d_state=16),
    "Mamba-2's steps, small rates": lambda: steps(head_dim=16, d_state=128, bias=-12.0),
    "Mamba-2's steps, large rates": lambda: steps(head_dim=16, d_state=16, bias=25.0),
    "Mamba-2's steps, odd widths": lambda: steps(d_model=36, head_dim=12, d_state=5, groups=2, d_conv=3),
    "Mamba-2's steps, rates in bounds": lambda: steps(
        head_dim=8, d_state=24, groups=4, dt_limit=[0.01, 0.5], gated_norm="before", conv_bias=False
    ),
    "Mamba-2's steps, donated": lambda: steps(head_dim=16, d_state=16, donated=True),
    "Mamba-2's steps, no norm": lambda: steps(head_dim=16, d_state=16, gated_norm="none"),
    "rope": lambda: rope(heads=3, width=8, pairs=4),
    "rope of a view, of a part of the channels": lambda: rope(heads=5, width=14, pairs=3, packed=True),
    "rope of neighbours": lambda: rope(heads=2, width=10, pairs=3, interleaved=True),
    "rope of many heads": lambda: rope(heads=9, width=1024, pairs=512),
    "swiglu": lambda: gated(3, 5, 14),
    "swiglu in several blocks": lambda: gated(2, 2 * 1100),
    "norm": lambda: norm(both=False),
    "norm and residual": lambda: norm(both=True),
    "norm of a sum": lambda: norm(both=True, added=torch.float32),
    "norm of a sum alone": lambda: norm(both=False, added=torch.float32),
    "norm of a sum with a narrower one": lambda: norm(both=True, added=torch.float16, rows=5, width=64),
    "norm of a view": lambda: norm(both=True, rows=5, width=64, transposed=True),
    "loss": lambda: loss(vocabulary=50, ignored=0),
    "loss in several blocks, some ignored": lambda: loss(vocabulary=5000, ignored=3),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(  # type: ignore[assignment]
        multi_processor_count=2
    )
    print(json.dumps({name: run() for name, run in CASES.items()}))
