"""What stands before a sequence's first token changes nothing: outputs, states, gradients and later steps.

Shape suffixes: b batch, l length, t tokens so far, d d_model.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.mixers.base import Call, tensors_in
from contract.building import MIXER_CASES, inputs, label, mixer_of, relative

every_mixer = pytest.mark.parametrize(("kind", "fields"), MIXER_CASES, ids=label)

PADDING = (0, 1, 5, 70)
"""Positions before each sequence's first token: none, fewer than a convolution sees, more than a chunk."""

LENGTH = 75


def padded() -> tuple[Tensor, Tensor]:
    """Sequences with something other than zeros in front of them, and the mask of their real tokens."""
    mask_bl = torch.arange(LENGTH) >= torch.tensor(PADDING)[:, None]
    return inputs(len(PADDING), LENGTH), mask_bl


@every_mixer
def test_padding_leaves_no_trace(kind: str, fields: dict[str, Any]) -> None:
    mixer, (x_bld, mask_bl) = mixer_of(kind, fields), padded()
    with torch.no_grad():
        together_bld, states = mixer.prefill(x_bld, Call(mask=mask_bl))
        forward_bld = mixer(x_bld, Call(mask=mask_bl))
        assert together_bld.isfinite().all()
        for row, start in enumerate(PADDING):
            alone_bld, alone = mixer.prefill(x_bld[row : row + 1, start:])
            assert relative(together_bld[row, start:], alone_bld[0]) <= 1e-9
            assert relative(forward_bld[row, start:], alone_bld[0]) <= 1e-9
            for found, truth in zip(tensors_in(states), tensors_in(alone), strict=True):
                # A cache of keys holds the padding's too, unread; rotated keys know how much there was.
                if found[row].shape == truth[0].shape and getattr(mixer, "rope", None) is None:
                    assert relative(found[row], truth[0]) <= 1e-9


@every_mixer
@pytest.mark.parametrize("prefilled", [LENGTH - 4, 71])
def test_steps_after_a_padded_prefill(kind: str, fields: dict[str, Any], prefilled: int) -> None:
    mixer, (x_bld, mask_bl) = mixer_of(kind, fields), padded()
    with torch.no_grad():
        truth = [mixer(x_bld[row : row + 1, start:]) for row, start in enumerate(PADDING)]
        _, state = mixer.prefill(x_bld[:, :prefilled], Call(mask=mask_bl[:, :prefilled]))
        for t in range(prefilled, LENGTH):
            y_bd, state = mixer.step(x_bld[:, t], state, Call(mask=mask_bl[:, : t + 1]))
            for row, start in enumerate(PADDING):
                assert relative(y_bd[row], truth[row][0, t - start]) <= 1e-9


@every_mixer
def test_gradients_do_not_know_of_padding(kind: str, fields: dict[str, Any]) -> None:
    mixer, (x_bld, mask_bl) = mixer_of(kind, fields), padded()

    def gradients(loss: Tensor, x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [x, *mixer.parameters()]))

    x_bld.requires_grad_()
    dx_bld, *found = gradients(mixer(x_bld, Call(mask=mask_bl))[mask_bl].sin().sum(), x_bld)
    assert all(t.isfinite().all() for t in [dx_bld, *found])
    truth = [torch.zeros_like(p) for p in mixer.parameters()]
    for row, start in enumerate(PADDING):
        x_ld = x_bld.detach()[row : row + 1, start:].requires_grad_()
        dx_ld, *parts = gradients(mixer(x_ld).sin().sum(), x_ld)
        assert relative(dx_bld[row, start:], dx_ld[0]) <= 1e-8
        assert not start or dx_bld[row, :start].abs().max() <= 1e-8 * dx_ld.abs().max()
        truth = [a + b for a, b in zip(truth, parts, strict=True)]
    for a, b in zip(found, truth, strict=True):
        # Where nothing is remembered, the decays' gradients are all rounding.
        assert (a - b).abs().max() <= 1e-8 * b.abs().max().clamp_min(1e-2)


@every_mixer
def test_a_mask_of_real_tokens_alone_changes_nothing(kind: str, fields: dict[str, Any]) -> None:
    mixer, x_bld = mixer_of(kind, fields), inputs(2, 9)
    with torch.no_grad():
        everything = Call(mask=torch.ones(2, 9, dtype=torch.bool))
        assert relative(mixer(x_bld, everything), mixer(x_bld)) <= 1e-12
