"""Each kernel tried once, on a small input of usual widths, against float64 on the CPU.

Shape suffixes: as in `calls`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch.mixers.selective_scan import selective_scan_reference, selective_scan_step
from archsearch.mixers.ssd import ssd_reference, ssd_step

Results = tuple[Tensor, ...]

BATCH, LENGTH, HEADS, HEAD_DIM, STATE, TAPS = 2, 40, 8, 64, 64, 4
INNER = HEADS * HEAD_DIM
CONV = INNER + 2 * STATE
IGNORE = -1

TOLERANCE = 0.08
"""Of the largest number of the reference: far above bfloat16's rounding, and nonsense is far above this."""


@dataclass(frozen=True)
class Trial:
    """Inputs by name and shape; what runs the kernel's call on them, and the truth.

    wide: the inputs that kernels take in float32. positive, negative: those that are so. gradients: whether
    the kernel has a backward pass; that of the first result is tried.
    """

    shapes: dict[str, tuple[int, ...]]
    run: Callable[..., Results]
    truth: Callable[..., Results]
    wide: frozenset[str] = frozenset()
    positive: frozenset[str] = frozenset()
    negative: frozenset[str] = frozenset()
    gradients: bool = True


def complaint(operation: str, call: Callable[..., Any], device: str) -> str | None:
    """What is wrong with a kernel, or None."""
    # In a thread of its own, so that no device, dtype or gradient mode of the caller's reaches the trial.
    with ThreadPoolExecutor(1) as pool, untuned("mamba_ssm"):
        try:
            error = pool.submit(largest_error, TRIALS[operation], call, device).result()
        except Exception as failure:  # to compile, to launch, by an assertion: kernels fail in many ways
            return f"raises {type(failure).__name__}: {' '.join(str(failure).split())[:120]}"
    return None if error <= TOLERANCE else f"returns nonsense: off by {error:.2g} of the largest number"


@contextmanager
def untuned(package: str) -> Iterator[None]:
    """Triton kernels of a package take the last of their configurations instead of timing all of them.

    A trial is over sooner, and what is fastest at its size is not kept for all others. (By the name of the
    class: Triton need not be there.)
    """
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == package]
    found = [value for module in modules for value in vars(module).values()]
    tuners = {id(t): t for t in found if type(t).__name__ == "Autotuner"}
    before = {key: t.configs for key, t in tuners.items()}
    try:
        for tuner in tuners.values():
            tuner.configs = tuner.configs[-1:]
        yield
    finally:
        for key, tuner in tuners.items():
            tuner.configs = before[key]


def largest_error(
    trial: Trial, call: Callable[..., Any], device: str, dtype: torch.dtype = torch.bfloat16
) -> float:
    """The largest error of results and gradients, relative to the largest number of each."""
    generator = torch.Generator().manual_seed(0)
    truth_in, kernel_in = {}, {}
    for name, shape in trial.shapes.items():
        value = torch.randn(shape, generator=generator).abs().add_(0.1) if name in trial.positive else None
        if value is None:
            value = torch.randn(shape, generator=generator)
        if name in trial.negative:
            value = -value.abs() - 0.1
        # Rounded first, so that both sides see the same numbers.
        value = value.to(torch.float32 if name in trial.wide else dtype)
        truth_in[name] = value.double().requires_grad_(trial.gradients)
        kernel_in[name] = value.to(device).requires_grad_(trial.gradients)
    expected, found = trial.truth(**truth_in), trial.run(call, **kernel_in)
    errors = [_error(f, e) for f, e in zip(found, expected, strict=True)]
    if trial.gradients:
        weight = torch.randn(expected[0].shape, generator=generator)
        wanted = torch.autograd.grad((expected[0] * weight).sum(), list(truth_in.values()))
        got = torch.autograd.grad((found[0] * weight.to(device)).sum(), list(kernel_in.values()))
        errors += [_error(g, w) for g, w in zip(got, wanted, strict=True)]
    return max(errors)


def _error(found: Tensor, expected: Tensor) -> float:
    scale = expected.detach().abs().max().clamp(min=1e-6)
    error = float((found.detach().double().cpu() - expected.detach()).abs().max() / scale)
    return float("inf") if error != error else error


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Results:
    return (F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.1),)


def _packed(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Results:
    starts = torch.arange(0, (BATCH + 1) * LENGTH, LENGTH, dtype=torch.int32, device=q.device)
    rows = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
    y = call(*rows, starts=starts, longest=LENGTH, scale=0.1)
    return (y.unflatten(0, (BATCH, LENGTH)).transpose(1, 2),)


def _cached(call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Results:
    """The last token's attention; keys and values are written where there was nothing."""
    k, v = k.clone(), v.clone()
    new = [t[:, :, -1].clone() for t in (k, v)]
    for buffer in (k, v):
        buffer[:, :, -1] = 0
    place = torch.tensor([k.data_ptr(), v.data_ptr(), LENGTH, LENGTH - 1, 0], device=q.device)
    return call(q[:, :, -1], *new, place, scale=0.1), k, v


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded_bcl = F.pad(x.mT, (TAPS - 1, 0))
    return F.silu(F.conv1d(padded_bcl, weight[:, None], bias, groups=len(weight))).mT


def _convolved_once(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Results:
    window_bkc = torch.cat([state, x[:, None]], dim=1)
    return F.silu(torch.einsum("bkc,ck->bc", window_bkc, weight) + bias), window_bkc[:, 1:]


def _ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Results:
    y, last = ssd_reference(x, dt, A, B, C)
    return y + D[:, None] * x, last


def _ssd_step(
    x: Tensor, dt: Tensor, dt_bias: Tensor, A_log: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> Results:
    y, state = ssd_step(x, F.softplus(dt + dt_bias), -A_log.exp(), B, C, state)
    return y + D[:, None] * x, state


def _mamba2(
    u: Tensor, weight: Tensor, bias: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, norm: Tensor, out: Tensor
) -> Results:
    z, conv, dt = u.split([INNER, CONV, HEADS], dim=-1)
    x, B, C = _convolved(conv, weight, bias).split([INNER, STATE, STATE], dim=-1)
    x = x.unflatten(-1, (HEADS, HEAD_DIM))
    y = _ssd(x, F.softplus(dt + dt_bias), A, B[:, :, None], C[:, :, None], D)[0].flatten(-2)
    return (F.linear(F.rms_norm(y * F.silu(z), (INNER,), norm, 1e-5), out),)


def _run_mamba2(
    call: Callable[..., Tensor],
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm: Tensor,
    out: Tensor,
) -> Results:
    y = call(
        u,
        conv=(weight, bias),
        dt_bias_h=dt_bias,
        A_h=A,
        D_h=D,
        norm=(norm, 1e-5),
        out=(out, None),
        head_dim=HEAD_DIM,
        groups=1,
        norm_first=False,
        dt_limit=(0.0, float("inf")),
    )
    return (y,)


def _targets(logits: Tensor) -> Tensor:
    targets = torch.arange(len(logits), device=logits.device)
    targets[3] = IGNORE
    return targets


def _scanned(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor, z: Tensor
) -> Results:
    y, last = selective_scan_reference(u, F.softplus(dt + dt_bias), A, B.squeeze(2), C.squeeze(2))
    return (y + D * u) * F.silu(z), last


def _scanned_once(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
) -> Results:
    y, state = selective_scan_step(u, dt, A, B.squeeze(1), C.squeeze(1), state)
    return y + D * u, state


def _plain(call: Callable[..., Results], **inputs: Tensor) -> Results:
    return call(*inputs.values())


def _angles(x: Tensor) -> Results:
    """Cosines and sines of the trial's angles, float32 and float64 of the same numbers."""
    angles = torch.outer(torch.arange(LENGTH), 100.0 ** -(torch.arange(HEAD_DIM // 4) / (HEAD_DIM // 4)))
    wide = torch.promote_types(x.dtype, torch.float32)
    return angles.cos().to(x.device, wide), angles.sin().to(x.device, wide)


def _turned(x: Tensor) -> Results:
    cos, sin = _angles(x)
    a, b, rest = x.split([HEAD_DIM // 4, HEAD_DIM // 4, HEAD_DIM // 2], dim=-1)
    return (torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1),)


_HEADS: dict[str, tuple[int, ...]] = dict.fromkeys("qkv", (BATCH, HEADS, LENGTH, HEAD_DIM))
_RATES = frozenset({"dt"}), frozenset({"A"})

TRIALS = {
    "attention": Trial(_HEADS, lambda call, q, k, v: (call(q, k, v, scale=0.1),), _attended),
    "packed_attention": Trial(_HEADS, _packed, _attended),
    "cached_attention": Trial(
        _HEADS,
        _cached,
        lambda q, k, v: (_attended(q, k, v)[0][:, :, -1], k, v),
        gradients=False,
    ),
    "short_conv": Trial(
        {"x": (BATCH, LENGTH, CONV), "weight": (CONV, TAPS), "bias": (CONV,)},
        lambda call, x, weight, bias: (call(x, weight, bias, silu=True),),
        lambda x, weight, bias: (_convolved(x, weight, bias),),
        frozenset({"weight", "bias"}),
    ),
    "short_conv_step": Trial(
        {"x": (BATCH, CONV), "state": (BATCH, TAPS - 1, CONV), "weight": (CONV, TAPS), "bias": (CONV,)},
        lambda call, x, state, weight, bias: call(x, state, weight, bias, silu=True),
        _convolved_once,
        frozenset({"weight", "bias"}),
        gradients=False,
    ),
    "ssd": Trial(
        {
            "x": (BATCH, LENGTH, HEADS, HEAD_DIM),
            "dt": (BATCH, LENGTH, HEADS),
            "A": (HEADS,),
            "B": (BATCH, LENGTH, 1, STATE),
            "C": (BATCH, LENGTH, 1, STATE),
            "D": (HEADS,),
        },
        _plain,
        _ssd,
        frozenset({"dt", "A", "D"}),
        *_RATES,
    ),
    "ssd_step": Trial(
        {
            "x": (BATCH, HEADS, HEAD_DIM),
            "dt": (BATCH, HEADS),
            "dt_bias": (HEADS,),
            "A_log": (HEADS,),
            "B": (BATCH, 1, STATE),
            "C": (BATCH, 1, STATE),
            "D": (HEADS,),
            "state": (BATCH, HEADS, HEAD_DIM, STATE),
        },
        _plain,
        _ssd_step,
        frozenset({"dt_bias", "A_log", "D", "state"}),
        gradients=False,
    ),
    "mamba2": Trial(
        {
            "u": (BATCH, LENGTH, INNER + CONV + HEADS),
            "weight": (CONV, TAPS),
            "bias": (CONV,),
            "dt_bias": (HEADS,),
            "A": (HEADS,),
            "D": (HEADS,),
            "norm": (INNER,),
            "out": (INNER // 2, INNER),
        },
        _run_mamba2,
        _mamba2,
        frozenset({"weight", "bias", "dt_bias", "A", "D", "norm"}),
        negative=frozenset({"A"}),
    ),
    "selective_scan": Trial(
        {
            "u": (BATCH, LENGTH, INNER),
            "dt": (BATCH, LENGTH, INNER),
            "A": (INNER, 16),
            "B": (BATCH, LENGTH, 1, 16),
            "C": (BATCH, LENGTH, 1, 16),
            "D": (INNER,),
            "dt_bias": (INNER,),
            "z": (BATCH, LENGTH, INNER),
        },
        _plain,
        _scanned,
        frozenset({"A", "D", "dt_bias"}),
        negative=frozenset({"A"}),
    ),
    "norm": Trial(
        {"x": (BATCH, LENGTH, INNER - 8), "weight": (INNER - 8,)},
        lambda call, x, weight: call(x, weight, eps=1e-5, dtype=x.dtype),
        lambda x, weight: (F.rms_norm(x, x.shape[-1:], weight, 1e-5), x),
        frozenset({"weight"}),
    ),
    "gated_norm": Trial(
        {"x": (BATCH, LENGTH, INNER - 8), "gate": (BATCH, LENGTH, INNER - 8), "weight": (INNER - 8,)},
        lambda call, x, gate, weight: (call(x, gate, weight, eps=1e-5, groups=1, norm_first=False),),
        lambda x, gate, weight: (F.rms_norm(x * F.silu(gate), x.shape[-1:], weight, 1e-5),),
        frozenset({"weight"}),
        gradients=False,
    ),
    "rope": Trial({"x": _HEADS["q"]}, lambda call, x: (call(x, *_angles(x)),), _turned),
    "swiglu": Trial(
        {"up": (BATCH, LENGTH, 2 * INNER - 16)},
        lambda call, up: (call(up),),
        lambda up: (F.silu(up.chunk(2, -1)[0]) * up.chunk(2, -1)[1],),
    ),
    "cross_entropy": Trial(
        {"logits": (LENGTH, INNER - 8)},
        lambda call, logits: (call(logits, _targets(logits), ignore=IGNORE),),
        lambda logits: (F.cross_entropy(logits, _targets(logits), ignore_index=IGNORE),),
    ),
    "selective_scan_step": Trial(
        {
            "u": (BATCH, INNER),
            "dt": (BATCH, INNER),
            "A": (INNER, 16),
            "B": (BATCH, 1, 16),
            "C": (BATCH, 1, 16),
            "D": (INNER,),
            "state": (BATCH, INNER, 16),
        },
        _plain,
        _scanned_once,
        frozenset({"dt", "A", "D", "state"}),
        *_RATES,
        gradients=False,
    ),
}
"""Operation -> how its kernels are tried."""
