"""Recorded steps are what steps kernel by kernel are. Without a GPU, what keeps and feeds recordings is held
against a recording that runs its blocks again, in memory of its own as a CUDA graph has it.
"""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from contract.building import MIXER_CASES, label
from mixers.serving import Serving, attend_in_place, served
from torch import Tensor

from archsearch import compile_model
from archsearch.compiler import LanguageModel, recording, steps
from archsearch.compiler.build import _initialise
from archsearch.compiler.model import ModelState
from archsearch.compiler.recording import Recording
from archsearch.compiler.steps import MOST_KEPT, kernel_by_kernel, told
from archsearch.interop.remote.modeling_archsearch import StateCache
from archsearch.mixers.base import Call
from archsearch.mixers.cache import KvCache, Position
from archsearch.mixers.kernels import Kernels
from archsearch.spec import ModelSpec

ALONE = [(kind, fields) for kind, fields in MIXER_CASES if kind != "gated_memory"]
"""gated_memory reads another layer: in a test of its own."""

STEADY = {"attention", "mamba1", "mamba2", "gated_deltanet", "kda", "lightning", "rglru", "gated_conv", "mlp"}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Again:
    """In the place of a CUDA graph: work that is done again, and what it returns written where it was.

    made: of how many tensors each step is; running: whether one is at it, as when a stream is captured.
    """

    made: list[int]
    error: Exception | None
    running: bool

    def __init__(self, work: Any, device: torch.device):
        if Again.error is not None:
            raise Again.error
        self.work = work
        self.found = self._again()

    def __call__(self) -> None:
        for tensor, now in zip(self.found, self._again(), strict=True):
            tensor.copy_(now)

    def _again(self) -> list[Tensor]:
        Again.running = True
        try:
            with torch.no_grad():
                found: list[Tensor] = self.work()
        finally:
            Again.running = False
        return found


class Noted(Recording):
    def __init__(self, run: Any, given: list[Tensor]):
        super().__init__(run, given)
        Again.made.append(len(given))


def may_replay(x_bd: Tensor) -> bool:
    """As on a GPU."""
    return steps._replaying.get() and not (Again.running or torch.is_grad_enabled())


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Again]]:
    Again.made, Again.error, Again.running = [], None, False
    with monkeypatch.context() as patch:
        patch.setattr(recording, "Graph", Again)
        patch.setattr(steps, "Recording", Noted)
        patch.setattr(steps, "may_replay", may_replay)
        yield Again


SERVING = Serving(served("cached_attention", attend_in_place))


def model_of(
    *layers: Any, d_model: int = 32, device: str = "cpu", kernels: Kernels = SERVING, **fields: Any
) -> LanguageModel:
    given = {"tokenizer": "bytes", "d_model": d_model, "layers": list(layers), **fields}
    spec = ModelSpec.model_validate(given)
    if device != "cpu":
        return compile_model(spec, device=device).eval()
    model = LanguageModel(spec, kernels)
    _initialise(model, torch.Generator().manual_seed(0))
    return model.eval()


@torch.no_grad()
def continued(
    model: LanguageModel,
    batch: int = 2,
    prompt: int = 5,
    tokens: int = 6,
    state: ModelState | None = None,
    donate: bool = False,
) -> Tensor:
    """Logits of tokens after a prompt, by steps. donate: all states but the first."""
    device = model.embedding.weight.device
    ids_bl = torch.randint(256, (batch, prompt + tokens), generator=torch.Generator().manual_seed(prompt))
    ids_bl = ids_bl.to(device)
    if state is None:
        _, state = model.prefill(ids_bl[:, :prompt])
    found = []
    for i, ids_b in enumerate(ids_bl[:, prompt:].unbind(1)):
        logits_bv, state = model.step(ids_b, state, donate=donate and i > 0)
        found.append(logits_bv)
    return torch.stack(found, 1)


def plain(model: LanguageModel, **given: Any) -> Tensor:
    """The same without recordings."""
    with kernel_by_kernel():
        return continued(model, **given)


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
