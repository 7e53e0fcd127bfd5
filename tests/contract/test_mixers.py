"""The contract of every mixer that is listed, in float64.

Shape suffixes: b batch, l length, d d_model or the inner width.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from archsearch.mixers.base import Surroundings, state_bytes
from archsearch.mixers.table import MIXERS
from archsearch.spec.cost import ITEMSIZE
from archsearch.spec.entries import layer_kinds
from contract.building import (
    D_MODEL,
    LENGTHS,
    MIXER_CASES,
    inputs,
    label,
    layer_of,
    mixer_of,
    relative,
)

every_mixer = pytest.mark.parametrize(("kind", "fields"), MIXER_CASES, ids=label)
with_and_without_projection = pytest.mark.parametrize("project", [True, False], ids=["projected", "inner"])


def test_every_kind_but_those_that_hold_others_has_a_mixer() -> None:
    own = {kind for kind, cls in layer_kinds().items() if cls.__module__.startswith("archsearch.")}
    assert set(MIXERS) | {"parallel", "sequential"} == own


@every_mixer
@pytest.mark.parametrize("length", LENGTHS)
def test_steps_continue_a_prefill_as_one_forward_would(
    kind: str, fields: dict[str, Any], length: int
) -> None:
    mixer, x_bld = mixer_of(kind, fields), inputs(2, length)
    with torch.no_grad():
        truth_bld = mixer(x_bld)
        for prefilled in {1, length // 2 or 1, length}:
            y_bld, state = mixer.prefill(x_bld[:, :prefilled])
            outputs = list(y_bld.unbind(1))
            for t in range(prefilled, length):
                y_bd, state = mixer.step(x_bld[:, t], state)
                outputs.append(y_bd)
            assert relative(torch.stack(outputs, 1), truth_bld) <= 1e-10


@every_mixer
@with_and_without_projection
def test_shapes_and_counted_parameters(kind: str, fields: dict[str, Any], project: bool) -> None:
    layer, mixer = layer_of(kind, fields), mixer_of(kind, fields, project)
    width = D_MODEL if project else layer.inner_width(D_MODEL)
    assert mixer(inputs(3, 5)).shape == (3, 5, width)
    assert sum(p.numel() for p in mixer.parameters()) == layer.params(D_MODEL, project)
    count = layer.params(D_MODEL, project)
    assert min(count, 1) <= layer.active_params(D_MODEL, project) <= count


@every_mixer
@with_and_without_projection
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_state_is_as_large_as_the_spec_says(
    kind: str, fields: dict[str, Any], project: bool, dtype: torch.dtype
) -> None:
    layer, mixer = layer_of(kind, fields), mixer_of(kind, fields, project).to(dtype)
    itemsize = ITEMSIZE[str(dtype).removeprefix("torch.")]
    batch, x_bld = 3, inputs(3, 70).to(dtype)
    with torch.no_grad():
        for context in (1, 2, 6, 64, 69):
            _, state = mixer.prefill(x_bld[:, :context])
            assert state_bytes(state) == batch * layer.state_bytes(D_MODEL, context, itemsize)
        y_bd, state = mixer.step(x_bld[:, 69], state)
    assert state_bytes(state) == batch * layer.state_bytes(D_MODEL, 70, itemsize)
    assert y_bd.dtype == dtype


@every_mixer
def test_a_step_leaves_the_old_state_valid(kind: str, fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of(kind, fields), inputs(1, 12)
    with torch.no_grad():
        _, state = mixer.prefill(x_bld[:, :10])
        first, after = mixer.step(x_bld[:, 10], state)
        mixer.step(x_bld[:, 11], after)
        again, _ = mixer.step(x_bld[:, 10], state)
    assert torch.equal(first, again)


@every_mixer
@pytest.mark.parametrize("at", [1, 63, 64, 99])
def test_the_past_does_not_see_the_future(kind: str, fields: dict[str, Any], at: int) -> None:
    mixer, x_bld = mixer_of(kind, fields), inputs(1, 100)
    other_bld = x_bld.clone()
    other_bld[:, at:] += 10 * inputs(1, 100 - at, seed=1)
    with torch.no_grad():
        before_bld, after_bld = mixer(x_bld)[:, :at], mixer(other_bld)[:, :at]
    assert relative(after_bld, before_bld) <= 1e-12
    x_bld.requires_grad_()
    mixer(x_bld)[:, :at].square().sum().backward()
    assert x_bld.grad is not None
    assert not x_bld.grad[:, at:].any()
    assert x_bld.grad[:, :at].any(-1).all()


@every_mixer
@with_and_without_projection
def test_every_parameter_learns(kind: str, fields: dict[str, Any], project: bool) -> None:
    mixer, x_bld = mixer_of(kind, fields, project), inputs(2, 70).requires_grad_()
    y_bld = mixer(x_bld)
    (y_bld * torch.linspace(-1, 1, y_bld.numel(), dtype=y_bld.dtype).view_as(y_bld)).sum().backward()
    for name, parameter in [("input", x_bld), *mixer.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every_mixer
def test_gradients_are_those_of_finite_differences(kind: str, fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of(kind, fields), inputs(1, 66)
    direction_bld = inputs(1, 66, seed=2)
    x_bld.requires_grad_()
    (mixer(x_bld).tanh().sum()).backward()
    assert x_bld.grad is not None
    with torch.no_grad():
        ahead, behind = (mixer(x_bld + h * direction_bld).tanh().sum() for h in (1e-5, -1e-5))
        slope = (ahead - behind) / 2e-5
        torch.testing.assert_close((x_bld.grad * direction_bld).sum(), slope, rtol=1e-5, atol=1e-6)


@every_mixer
def test_sequences_of_a_batch_do_not_meet(kind: str, fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of(kind, fields), inputs(3, 67)
    with torch.no_grad():
        together_bld = mixer(x_bld)
        apart_bld = torch.cat([mixer(x_bld[i : i + 1]) for i in range(3)])
    assert relative(together_bld, apart_bld) <= 1e-12


@every_mixer
def test_the_seed_decides_every_weight(kind: str, fields: dict[str, Any]) -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        mixer = MIXERS[kind](layer_of(kind, fields), Surroundings(D_MODEL))
        mixer.reset_parameters(torch.Generator().manual_seed(seed))
        return mixer.state_dict()

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(tensor.isfinite().all() for tensor in first.values())
    assert any(not torch.equal(first[name], other[name]) for name in first)


@every_mixer
def test_autocast_runs_both_ways_and_stays_near(kind: str, fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of(kind, fields).float(), inputs(2, 70).float().requires_grad_()
    truth_bld = mixer(x_bld).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y_bld = mixer(x_bld)
        state = mixer.prefill(x_bld)[1]
    y_bld.float().square().sum().backward()
    # On the whole: a norm of nearly nothing magnifies what rounding does to a single number.
    assert (y_bld.detach().float() - truth_bld).norm() < 0.03 * truth_bld.norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y_bd, _ = mixer.step(x_bld[:, 0], state)
    assert y_bd.isfinite().all()
