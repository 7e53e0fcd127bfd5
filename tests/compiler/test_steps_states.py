"""States of recorded steps: old ones that stay valid, lent ones, caches that grow and move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.compiler import steps
from archsearch.compiler.model import ModelState
from archsearch.compiler.steps import told
from archsearch.interop.remote.modeling_archsearch import StateCache
from archsearch.mixers.base import Call
from archsearch.mixers.kernels import Kernels
from compiler.stepping import Again, continued, model_of, plain


def test_old_states_stay_valid(recorded: type[Again]) -> None:
    model = model_of("rglru", {"mamba2": {"head_dim": 16, "d_state": 4}})
    with torch.no_grad():
        _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
        for _ in range(3):
            _, state = model.step(torch.zeros(2, dtype=torch.long), state)
        first = continued(model, state=state)
        torch.testing.assert_close(continued(model, state=state), first, rtol=0, atol=0)
        torch.testing.assert_close(plain(model, state=state), first)
    assert len(recorded.made) == 1


LENDING: list[Any] = ["rglru", {"mamba2": {"head_dim": 16, "d_state": 4}}, "mlp", {"attention": {"heads": 2}}]
ATTENTION: list[Any] = [{"attention": {"heads": 4, "kv_heads": 2}}, "mlp"]


def lent(state: ModelState) -> list[int]:
    """Where the states of recorded layers lie."""
    return [tensor.data_ptr() for part in state.layers[:2] for tensor in part]


@torch.no_grad()
def test_donated_states_stay_where_they_are(recorded: type[Again]) -> None:
    model, token = model_of(*LENDING), torch.zeros(2, dtype=torch.long)
    _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
    _, state = model.step(token, state)
    _, state = model.step(token, state, donate=True)  # recorded
    _, state = model.step(token, state, donate=True)  # lent
    places = lent(state)
    for _ in range(3):
        _, state = model.step(token, state, donate=True)
        assert lent(state) == places
    for _ in range(2):
        _, state = model.step(token, state)
        assert set(lent(state)).isdisjoint(places)
    _, state = model.step(token, state, donate=True)
    assert lent(state) == places
    assert recorded.made == [5]


@torch.no_grad()
def test_what_is_lent_stays_valid_until_it_is_donated(recorded: type[Again]) -> None:
    """Whoever else steps, and however often it is stepped from itself."""
    model, token = model_of(*LENDING), torch.zeros(2, dtype=torch.long)
    continued(model, donate=True)
    _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
    _, state = model.step(token, state, donate=True)
    expected = plain(model, state=state)
    torch.testing.assert_close(continued(model, state=state), expected)  # not donated at first
    torch.testing.assert_close(continued(model, state=state, donate=True), expected)
    for donate in (False, True):
        _, state = model.step(token, state, donate=True)
        expected = plain(model, state=state)
        continued(model, prompt=7, donate=donate)  # of another sequence
        torch.testing.assert_close(continued(model, state=state), expected)
    assert len(recorded.made) == 1


@torch.no_grad()
def test_sequences_take_turns_with_donated_states(recorded: type[Again]) -> None:
    model = model_of(*LENDING)
    ids = torch.randint(256, (2, 2, 12), generator=torch.Generator().manual_seed(0))
    states = [model.prefill(part[:, :5])[1] for part in ids]
    found: list[list[Tensor]] = [[], []]
    for i in range(5, 12):
        for j, part in enumerate(ids):
            logits, states[j] = model.step(part[:, i], states[j], donate=True)
            found[j].append(logits)
    for part, logits in zip(ids, found, strict=True):
        torch.testing.assert_close(torch.stack(logits, 1), model(part)[:, 5:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_caches_grow_where_they_are(recorded: type[Again]) -> None:
    """For as long as they have room; then they move, and nothing is recorded anew."""
    model = model_of(*ATTENTION)
    for donate in (False, True):
        _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
        places, logits = [], []
        for i in range(150):
            found, state = model.step(torch.full((2,), i), state, donate=donate)
            places.append(state.layers[0].cache.k_bgte.data_ptr())
            logits.append(found)
        assert len(set(places[2:])) == 3
        ids = torch.cat([torch.ones(4, dtype=torch.long), torch.arange(150)]).expand(2, -1)
        torch.testing.assert_close(torch.stack(logits, 1), model(ids)[:, 4:], rtol=1e-4, atol=1e-5)
    assert recorded.made == [1]


def test_without_the_kernel_attention_is_not_recorded(recorded: type[Again]) -> None:
    model = model_of(*ATTENTION, kernels=Kernels())
    torch.testing.assert_close(continued(model), plain(model))
    assert told(model) == {"blocks": 1}


@torch.no_grad()
def test_any_state_may_be_continued(recorded: type[Again]) -> None:
    """Old ones, and such as were re-ordered."""
    model = model_of(*LENDING, *ATTENTION)
    _, state = model.prefill(torch.arange(8).view(2, 4))
    states = [state]
    for i in range(4):
        states.append(model.step(torch.full((2,), i), states[-1])[1])
    for state in (*states[::-1], *states):
        torch.testing.assert_close(continued(model, state=state), plain(model, state=state))
    swapped = StateCache()
    swapped.state = states[-1]
    swapped.reorder_cache(torch.tensor([1, 0]))
    assert swapped.state is not None
    torch.testing.assert_close(continued(model, state=swapped.state), plain(model, state=swapped.state))
    assert recorded.made == [1 + 2 + 2]


@torch.no_grad()
def test_padding_goes_kernel_by_kernel_where_attention_sees_it(recorded: type[Again]) -> None:
    model, ids = model_of(*ATTENTION), torch.arange(12).view(2, 6)
    mask = torch.tensor([[False, True, True, True], [True] * 4])
    continued(model)
    _, state = model.prefill(ids[:, :4], Call(mask))
    assert state.mask_bt is not None
    _, alone = model.prefill(ids[:1, 1:4])
    for i in (4, 5):
        logits, state = model.step(ids[:, i], state)
        own, alone = model.step(ids[:1, i], alone)
        torch.testing.assert_close(logits[:1], own, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_longer_sequences_than_were_recorded(recorded: type[Again], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "COVERED", 4)
    model = model_of(*ATTENTION)
    torch.testing.assert_close(continued(model, tokens=40), plain(model, tokens=40))
    assert recorded.made == [1, 1, 1]  # for 2 * 6 + 4 positions, then 2 * 16 + 4, and more


def test_a_block_is_recorded_with_all_that_it_holds(recorded: type[Again]) -> None:
    branches = ["rglru", [{"attention": {"heads": 2, "window": 3}}, "mlp"]]
    model = model_of({"parallel": {"branches": branches, "merge": "cross_attention"}}, *ATTENTION)
    torch.testing.assert_close(continued(model), plain(model))
    assert recorded.made == [3]  # x, and the recurrence's two
    assert told(model) == {"blocks": 3}


@pytest.mark.parametrize("window", [1, 9, 70])
def test_windows_fill_and_move_on(window: int, recorded: type[Again]) -> None:
    model = model_of({"attention": {"heads": 2, "window": window}}, "mlp")
    for prompt in (5, 11, 80):
        torch.testing.assert_close(
            continued(model, prompt=prompt, tokens=150), plain(model, prompt=prompt, tokens=150)
        )
    assert recorded.made == [1]
