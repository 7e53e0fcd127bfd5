"""The selective scan of Mamba-1 on the CPU, forward and backward, against autograd through a Python loop.

Three ways of computing the same outputs and gradients, timed in turn in one run, so that load on the machine
strikes all of them alike:

  blocked   archsearch's scan, with its own backward pass
  stepwise  the recurrence token by token, everything of a step computed in that step
  loop      decays and inputs of all tokens computed first, as (b, d, l, n) tensors, then a loop that takes a
            token's slice of them at a time: the algorithm of transformers' path without kernels

    python benchmarks/mamba1_scan.py [--batch 2] [--length 256] [--channels 512] [--state 16] [--rounds 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from archsearch.mixers.selective_scan import selective_scan, selective_scan_reference

Scan = Callable[..., tuple[Tensor, Tensor]]


def loop(u_bld: Tensor, dt_bld: Tensor, A_dn: Tensor, B_bln: Tensor, C_bln: Tensor) -> tuple[Tensor, Tensor]:
    dt_bdl = dt_bld.mT
    decay_bdln = torch.exp(A_dn[None, :, None] * dt_bdl[..., None])
    added_bdln = dt_bdl[..., None] * B_bln[:, None] * u_bld.mT[..., None]
    state_bdn = torch.zeros_like(added_bdln[:, :, 0])
    ys = []
    for t in range(u_bld.shape[1]):
        state_bdn = decay_bdln[:, :, t] * state_bdn + added_bdln[:, :, t]
        ys.append((state_bdn @ C_bln[:, t, :, None])[..., 0])
    return torch.stack(ys, dim=1), state_bdn


SCANS: dict[str, Scan] = {"blocked": selective_scan, "stepwise": selective_scan_reference, "loop": loop}


def arguments(batch: int, length: int, channels: int, n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    u, B, C = (torch.randn(batch, length, width, generator=g) for width in (channels, n, n))
    dt = 0.1 * torch.rand(batch, length, channels, generator=g)
    A = -torch.arange(1.0, n + 1).repeat(channels, 1)
    return [t.requires_grad_() for t in (u, dt, A, B, C)]


def results(scan: Scan, tensors: list[Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    y, _ = scan(*tensors)
    return y, *torch.autograd.grad(y, tensors, dy)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = arguments(options.batch, options.length, options.channels, options.state)
    dy = torch.randn_like(tensors[0])

    seconds: dict[str, list[float]] = {name: [] for name in SCANS}
    truth = results(
        selective_scan_reference, [t.detach().double().requires_grad_() for t in tensors], dy.double()
    )
    for name, scan in SCANS.items():
        found = results(scan, tensors, dy)
        error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, truth, strict=True))
        print(f"{name:9} largest relative error against float64 {error:.1e}")
    for _ in range(options.rounds):
        for name, scan in SCANS.items():
            began = time.perf_counter()
            results(scan, tensors, dy)
            seconds[name].append(time.perf_counter() - began)
    for name, times in seconds.items():
        ratio = median(own / other for own, other in zip(times, seconds["blocked"], strict=True))
        print(f"{name:9} median {1e3 * median(times):7.1f} ms, {ratio:5.1f} x blocked (median of the rounds)")


if __name__ == "__main__":
    main()
