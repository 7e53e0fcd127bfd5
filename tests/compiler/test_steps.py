"""Recorded steps are what steps kernel by kernel are (their states: test_steps_states)."""

from __future__ import annotations

import copy
import io
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from contract.building import MIXER_CASES, label
from torch import Tensor

from archsearch.compiler import LanguageModel
from archsearch.compiler.model import ModelState
from archsearch.compiler.steps import MOST_KEPT, kernel_by_kernel, told
from archsearch.mixers.cache import KvCache, Position
from compiler.stepping import Again, continued, model_of, plain

ALONE = [(kind, fields) for kind, fields in MIXER_CASES if kind != "gated_memory"]
"""gated_memory reads another layer: in a test of its own."""

STEADY = {"attention", "mamba1", "mamba2", "gated_deltanet", "kda", "lightning", "rglru", "gated_conv", "mlp"}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def form(state: Any) -> Any:
    """Of a state: its tensors' shapes, and whatever else it holds, but for what may grow."""
    if isinstance(state, Position):
        return "position"
    if isinstance(state, KvCache):
        return [t.shape[:2] + t.shape[3:] for t in (state.k_bgte, state.v_bgte)]
    if isinstance(state, tuple):
        return [form(part) for part in state]
    return state.shape if isinstance(state, Tensor) else state


@torch.no_grad()
def is_steady(model: LanguageModel) -> bool:
    """Whether the only layer's state is the same after a step, but for its numbers, and what it runs too."""
    ids_bl = torch.ones(2, 5, dtype=torch.long, device=model.embedding.weight.device)
    with kernel_by_kernel():
        _, before = model.prefill(ids_bl)
        _, after = model.step(ids_bl[:, 0], before)
    return model.layers[0].layer.recordable and form(before.layers[0]) == form(after.layers[0])


@pytest.mark.parametrize(("kind", "fields"), ALONE, ids=label)
def test_every_mixer_is_recorded_if_its_state_keeps_its_shape(
    kind: str, fields: dict[str, Any], recorded: type[Again]
) -> None:
    model = model_of({kind: fields}, d_model=64)
    expected = plain(model)
    torch.testing.assert_close(continued(model), expected)
    torch.testing.assert_close(continued(model, donate=True), expected)
    torch.testing.assert_close(plain(model, donate=True), expected)
    assert told(model) == {"blocks": int(is_steady(model))}
    assert kind not in STEADY or told(model)["blocks"] == 1


MLA: dict[str, Any] = {"mla": {"heads": 2, "kv_rank": 8, "nope_dim": 8, "rope_dim": 4}}
"""Grows, and is not recorded."""


def test_what_lies_between_growing_states_is_recorded(recorded: type[Again]) -> None:
    layers = ["mlp", "rglru", MLA, {"repeat": 2, "layers": ["rglru", "mlp"]}]
    model = model_of(*layers)
    torch.testing.assert_close(continued(model), plain(model))
    # x, and a convolution's and a recurrence's state a layer; the repeated layers are one run.
    assert recorded.made == [3, 5]


def test_a_branch_is_recorded_beside_one_that_is_not(recorded: type[Again]) -> None:
    branches = ["rglru", MLA, [{"mlp": {"hidden": 8}}, "rglru"]]
    model = model_of({"parallel": {"branches": branches, "merge": "mean"}})
    torch.testing.assert_close(continued(model), plain(model))
    assert recorded.made == [3, 3]
    assert told(model) == {"blocks": 3}  # one, and two of another branch
    whole = model_of({"parallel": {"branches": ["rglru", "mlp"], "merge": "mean"}}, "mlp")
    torch.testing.assert_close(continued(whole), plain(whole))
    assert recorded.made == [3, 3, 3]


def test_layers_that_read_others_are_not_recorded(recorded: type[Again]) -> None:
    memory = [{"mamba2": {"id": "m", "head_dim": 16, "d_state": 4}}, {"gated_memory": {"memory_from": "m"}}]
    residual = [{"mlp": {"id": "m"}}, "mlp", {"mlp": {"inputs": ["m"]}}]
    for layers, expected in ((memory, []), (residual, [1])):
        recorded.made.clear()
        model = model_of(*layers)
        torch.testing.assert_close(continued(model), plain(model))
        assert recorded.made == expected


def test_each_size_of_batch_has_a_recording_and_some_are_kept(recorded: type[Again]) -> None:
    model = model_of("rglru")
    for batch in range(1, MOST_KEPT + 3):
        torch.testing.assert_close(continued(model, batch=batch), plain(model, batch=batch))
    assert len(recorded.made) == MOST_KEPT + 2
    assert len(model._steps._kept) == MOST_KEPT
    continued(model, batch=MOST_KEPT + 2)
    assert len(recorded.made) == MOST_KEPT + 2


def test_states_of_other_shapes_go_kernel_by_kernel(recorded: type[Again]) -> None:
    model = model_of("rglru", "mlp")
    continued(model)
    _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
    (conv, h), rest = state.layers
    wide = ModelState((type(state.layers[0])(conv, h.double()), rest), state.position)
    torch.testing.assert_close(continued(model, state=wide), plain(model, state=wide))
    torch.testing.assert_close(continued(model, state=state), plain(model, state=state))
    assert recorded.made == [3]


def test_recordings_are_good_in_inference_mode_and_outside(recorded: type[Again]) -> None:
    model, token = model_of("rglru", "mlp"), torch.zeros(2, dtype=torch.long)
    with torch.inference_mode():
        first = continued(model).clone()
    torch.testing.assert_close(continued(model), first)
    with torch.inference_mode():
        torch.testing.assert_close(continued(model), first)
        torch.testing.assert_close(continued(model, donate=True), first)
        _, inside = model.prefill(torch.ones(2, 4, dtype=torch.long))
        _, inside = model.step(token, inside, donate=True)
    with torch.no_grad():
        expected = plain(model, state=inside)
        torch.testing.assert_close(continued(model, donate=True), first)
        torch.testing.assert_close(continued(model, state=inside), expected)
        _, outside = model.step(token, inside, donate=True)
    with torch.inference_mode():
        expected = plain(model, state=outside)
        torch.testing.assert_close(continued(model, donate=True), first)
        torch.testing.assert_close(continued(model, state=outside, donate=True), expected)
    assert len(recorded.made) == 1


def test_new_weights_are_taken(recorded: type[Again]) -> None:
    model, other = model_of("rglru", "mlp"), model_of("rglru", "mlp")
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    continued(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(continued(model), plain(other))
    assert len(recorded.made) == 1
    model.load_state_dict({name: t * 2 for name, t in other.state_dict().items()}, assign=True)
    torch.testing.assert_close(continued(model), plain(model))
    assert len(recorded.made) == 2
    torch.testing.assert_close(continued(model.double()), plain(model))
    assert len(recorded.made) == 3
    model.layers[1].layer = copy.deepcopy(other.layers[1].layer).double()
    torch.testing.assert_close(continued(model), plain(model))
    assert len(recorded.made) == 4


def test_threads_take_turns_at_a_recording(recorded: type[Again]) -> None:
    model = model_of("rglru", "mlp")
    expected = [plain(model, prompt=prompt) for prompt in (3, 7)]
    continued(model)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: continued(model, prompt=(3, 7)[i % 2], tokens=6), range(40)))
    for i, logits in enumerate(found):
        torch.testing.assert_close(logits, expected[i % 2])
    assert len(recorded.made) == 1


def test_a_model_that_leaves_takes_its_weights_along(recorded: type[Again]) -> None:
    model = model_of("rglru", {"mamba2": {"head_dim": 16, "d_state": 4, "multipliers": [1, 2, 1, 1, 1]}})
    for batch in (1, 2):
        continued(model, batch=batch)
    left = [weakref.ref(p) for p in model.parameters()]
    for name, p in model.named_parameters():
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, torch.nn.Parameter(p.detach() * 2))
    del p
    assert all(ref() is None for ref in left)


def test_a_copy_records_for_itself(recorded: type[Again]) -> None:
    model = model_of("rglru")
    continued(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        made = len(recorded.made)
        with torch.no_grad():
            twin.embedding.weight.mul_(2)
            twin.layers[0].layer.linear_y.weight.mul_(2)
        torch.testing.assert_close(continued(twin), plain(twin))
        assert len(recorded.made) == made + 1


def test_what_cannot_be_recorded_goes_on(recorded: type[Again]) -> None:
    model = model_of("rglru", {"attention": {"heads": 2}}, "mlp")
    recorded.error = RuntimeError("the capture was invalidated")
    recorded.error.__context__ = RuntimeError("operation not permitted\nSee ...")
    torch.testing.assert_close(continued(model), plain(model))
    assert told(model) == {"blocks": 0, "refused": ["RuntimeError: operation not permitted"]}
    recorded.error = None
    continued(model)
    assert not recorded.made


def test_a_recording_that_is_wrong_is_not_used(
    recorded: type[Again], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it had read memory that is others' by now."""
    model = model_of("rglru", "mlp")
    before = Again.__call__

    def spoilt(self: Again) -> None:
        before(self)
        self.found[0].mul_(1.1)

    monkeypatch.setattr(Again, "__call__", spoilt)
    torch.testing.assert_close(continued(model), plain(model))
    assert model._steps.refused == "RuntimeError: replayed, a step is not what it is kernel by kernel"


def test_an_error_in_a_step_is_told(recorded: type[Again]) -> None:
    model = model_of("rglru")
    continued(model)
    with torch.no_grad():
        _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
        with pytest.raises(ValueError, match="shorter"):
            model.step(torch.ones(2, dtype=torch.long), ModelState((), state.position))


def test_gradients_flow_through_steps(recorded: type[Again]) -> None:
    model = model_of("rglru")
    continued(model)
    _, state = model.prefill(torch.ones(2, 4, dtype=torch.long))
    logits_bv, _ = model.step(torch.ones(2, dtype=torch.long), state)
    logits_bv.sum().backward()
    assert model.layers[0].layer.linear_y.weight.grad is not None


def test_nothing_is_recorded_on_a_cpu() -> None:
    model = model_of("rglru")
    continued(model)
    assert told(model) == {"blocks": 0}


@needs_gpu
@pytest.mark.parametrize(("kind", "fields"), ALONE, ids=label)
def test_every_mixer_on_a_gpu(kind: str, fields: dict[str, Any]) -> None:
    model = model_of({kind: fields}, "mlp", d_model=64, device="cuda")
    wide = copy.deepcopy(model).to("cpu", torch.float64)
    for batch in (1, 3):
        found = continued(model, batch=batch)
        torch.testing.assert_close(found, plain(model, batch=batch), rtol=1e-4, atol=1e-4)
        donated = continued(model, batch=batch, donate=True)
        torch.testing.assert_close(donated, plain(model, batch=batch, donate=True), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(donated, found, rtol=1e-4, atol=1e-4)
        expected = continued(wide, batch=batch)
        torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-4)
    assert told(model) == {"blocks": 2 * (1 + is_steady(model))}


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_on_a_gpu(dtype: torch.dtype) -> None:
    layers = [{"mamba2": {"head_dim": 16, "d_state": 16}}, "mlp", {"attention": {"heads": 2}}, "rglru", "mlp"]
    model = model_of(*layers, d_model=64, device="cuda")
    with torch.inference_mode(), torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        for donate in (False, True, False):
            found = continued(model, donate=donate)
            torch.testing.assert_close(found, plain(model), rtol=3e-2, atol=3e-2)
    assert told(model) == {"blocks": 5}


@needs_gpu
@pytest.mark.parametrize("window", [None, 70])
def test_caches_that_grow_and_move_on_a_gpu(window: int | None) -> None:
    attention = {"attention": {"heads": 4, "kv_heads": 2, "softcap": 3.0, "sinks": True, "window": window}}
    branches = [{"mamba2": {"head_dim": 16, "d_state": 16}}, [attention, "mlp"]]
    merge = {"cross_attention": {"window": window}}
    layers = [attention, {"parallel": {"branches": branches, "merge": merge}}, "mlp"]
    model = model_of(*layers, d_model=64, device="cuda")
    wide = copy.deepcopy(model).to("cpu", torch.float64)
    for prompt in (3, 100):
        expected = continued(wide, prompt=prompt, tokens=300)
        for donate in (False, True):
            found = continued(model, prompt=prompt, tokens=300, donate=donate)
            torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-3, atol=1e-3)
    assert told(model) == {"blocks": 3}
