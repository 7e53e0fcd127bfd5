"""Passes recorded as CUDA graphs train as kernels launched one by one do (seen on a GPU alone); and when they
are recorded, kept and given back.
"""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from archsearch import compile_model
from archsearch.data import DataSpec, Group, MixtureStream
from archsearch.mixers.base import Call
from archsearch.spec import ModelSpec
from archsearch.training import graphs
from archsearch.training.graphs import MOST_SHAPES, RecordedPasses, recordable
from archsearch.training.loop import Trainer
from archsearch.training.spec import TrainingSpec

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LAYERS: list[Any] = [
    {"attention": {"heads": 2, "window": 32}},
    {"parallel": {"branches": [{"mamba2": {"head_dim": 16, "d_state": 16}}, "rglru"], "merge": "gate"}},
    {"gated_deltanet": {"key_heads": 2, "value_heads": 2, "key_dim": 16, "value_dim": 16}},
    "mlp",
]


def model_of(layers: list[Any]) -> nn.Module:
    spec = ModelSpec.model_validate({"tokenizer": "bytes", "d_model": 32, "layers": layers})
    return compile_model(spec, device="cuda" if torch.cuda.is_available() else "cpu")


def trainer(precision: Any = "float32") -> Trainer:
    """Of two sources whose sequences differ in length, so that a step has two shapes."""
    spec = TrainingSpec(tokens=8192, context=128, tokens_per_step=1024, precision=precision)
    sources = {"recall": {"mqar": {"pairs": 4, "length": 64}}}
    data = DataSpec.model_validate({"mixture": {"reference": 2, "recall": 1}, "sources": sources})
    stream = MixtureStream(data, context=128, tokens_per_step=1024, seed=0)
    return Trainer(model_of(LAYERS), stream, spec, "cuda")


def trainer_of_three() -> Trainer:
    few, many = ({"mqar": {"pairs": n, "length": 8 * n}} for n in (2, 4))
    data = DataSpec.model_validate(
        {"mixture": {"reference": 3, "few": 1.3, "many": 2}, "sources": {"few": few, "many": many}}
    )
    stream = MixtureStream(data, context=64, tokens_per_step=512, seed=0)
    model = compile_model(ModelSpec.model_validate({"tokenizer": "bytes", "d_model": 16, "layers": ["mlp"]}))
    return Trainer(model, stream, TrainingSpec(tokens=8192, context=64, tokens_per_step=512))


@needs_gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_goes_as_it_does_kernel_by_kernel(precision: str) -> None:
    recorded, plain = trainer(precision), trainer(precision)
    assert recorded.passes is not None
    plain.passes = None
    found = [[one.train_step().losses for _ in range(8)] for one in (recorded, plain)]
    assert recorded.passes.refused is None
    assert recorded.passes._recorded
    for mine, its in zip(*found, strict=True):
        assert mine == pytest.approx(its, rel=1e-4 if precision == "float32" else 2e-2)


@needs_gpu
def test_shapes_of_which_one_is_new_are_recorded_all_the_same() -> None:
    """The passes of the new ones, kernel by kernel, are under way when the others run."""
    one = trainer()
    assert one.passes is not None

    def step(*lengths: int) -> None:
        ids = {n: np.full((2, n), len(lengths)) for n in lengths}
        groups = [Group(f"s{n}", ids_bl, ids_bl, 1 / len(ids)) for n, ids_bl in ids.items()]
        loss, _, _ = one._loss(tuple(groups))
        one._backward(loss)

    step(64, 128)
    step(32, 64, 128)
    step(16, 32, 64)
    assert one.passes.told() == {"shapes": 3}


@needs_gpu
def test_a_pass_that_a_cycle_keeps_is_no_hindrance() -> None:
    one = trainer()
    assert one.passes is not None
    gc.disable()
    try:
        for _ in range(2):
            ids_bl = torch.zeros(2, 64, dtype=torch.long, device="cuda")
            one.passes.prepare([ids_bl])
            kept: list[Any] = [one.passes(ids_bl)]
            kept.append(kept)
            del kept
    finally:
        gc.enable()
    assert one.passes.told() == {"shapes": 1}


@needs_gpu
def test_a_longer_sequence_in_between_changes_nothing() -> None:
    """A layer then takes a larger table, and what is recorded reads the one before."""
    recorded, plain = trainer(), trainer()
    assert recorded.passes is not None
    plain.passes = None
    for one in (recorded, plain):
        for _ in range(4):
            one.train_step()
    with torch.no_grad():
        recorded.model(torch.zeros(1, 2000, dtype=torch.long, device="cuda"))
    litter = [torch.full((1 << k,), float("nan"), device="cuda") for k in range(8, 20)]
    for _ in range(4):
        assert recorded.train_step().losses == pytest.approx(plain.train_step().losses, rel=1e-4)
    del litter


@needs_gpu
def test_memory_is_given_back_and_taken_again() -> None:
    one = trainer()
    assert one.passes is not None
    for _ in range(4):
        one.train_step()
    held = torch.cuda.memory_reserved()
    one.optimizer.zero_grad(set_to_none=True)
    one.passes.release()
    assert torch.cuda.memory_reserved() < held
    for _ in range(4):
        one.train_step()
    assert one.passes._recorded


class Asks(nn.Module):
    """Launches what its input says, which no recording can know."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 4))

    def forward(self, ids_bl: torch.Tensor, call: Any) -> torch.Tensor:
        y = self.weight[ids_bl]
        return y * 2 if bool((ids_bl > 3).any()) else y


@needs_gpu
def test_what_cannot_be_recorded_runs_kernel_by_kernel() -> None:
    model = Asks().cuda()
    passes = RecordedPasses(model, nullcontext)
    for ids in (torch.zeros(2, 3), torch.full((2, 3), 5), torch.zeros(2, 3)):
        ids_bl = ids.long().cuda()
        passes.prepare([ids_bl])
        logits = passes(ids_bl)
        assert torch.equal(logits, model(ids_bl, None))
        logits.sum().backward()
    assert passes.refused is not None
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


@needs_gpu
def test_so_many_shapes_are_kept() -> None:
    model = model_of(["mlp"])
    passes = RecordedPasses(model, nullcontext)
    for length in range(1, MOST_SHAPES + 3):
        ids_bl = torch.zeros(1, length, dtype=torch.long, device="cuda")
        for _ in range(3):
            passes.prepare([ids_bl])
            torch.testing.assert_close(passes(ids_bl), model(ids_bl))
    assert len(passes._recorded) == MOST_SHAPES


def test_what_can_be_recorded() -> None:
    gpu = torch.device("cuda")
    assert recordable(model_of(LAYERS), gpu)
    assert not recordable(model_of(LAYERS), torch.device("cpu"))
    assert not recordable(model_of(["mlp", {"moe": {"experts": 2, "top_k": 1}}]), gpu)


class Recorder:
    """In the place of CUDA: notes the shapes that are recorded, and says how much memory there is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.shapes: list[tuple[int, ...]] = []
        self.free, self.needed = 1 << 40, 1 << 20
        self.error: Exception | None = None
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", self.record)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *device: (self.free, 1 << 41))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *device: self.needed)
        for name in ("memory_allocated", "memory_reserved"):
            monkeypatch.setattr(torch.cuda, name, lambda *device: 0)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(graphs, "on_this_stream", lambda device: nullcontext())

    def record(self, run: nn.Module, given: tuple[torch.Tensor, ...], **more: Any) -> None:
        if self.error is not None:
            raise self.error
        self.shapes.append(tuple(given[0].shape))


def passes_of(layers: list[Any]) -> tuple[RecordedPasses, Any]:
    model = compile_model(ModelSpec.model_validate({"tokenizer": "bytes", "d_model": 16, "layers": layers}))
    passes = RecordedPasses(model, nullcontext)

    def run(batch: int, length: int) -> None:
        ids_bl = torch.ones(batch, length, dtype=torch.long)
        passes.prepare([ids_bl])
        assert torch.equal(passes(ids_bl), model(ids_bl))

    return passes, run


def test_a_shape_is_recorded_when_it_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    passes, run = passes_of(["mlp"])
    for shape in [(2, 4), (1, 4), (2, 4), (2, 4), (1, 4), (3, 4)]:
        run(*shape)
    assert recorder.shapes == [(2, 4), (1, 4)]
    assert passes.told() == {"shapes": 2}
    passes.release()
    for _ in range(2):
        run(2, 4)
    assert recorder.shapes == [(2, 4), (1, 4), (2, 4)]


def test_nothing_is_recorded_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    passes, run = passes_of(["mlp"])
    recorder.free, recorder.needed = 1000, 501
    for _ in range(3):
        run(2, 4)
    assert not recorder.shapes
    recorder.needed = 499
    run(2, 4)
    assert recorder.shapes == [(2, 4)]
    passes.make_room()
    assert passes._recorded
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *device: 1001)
    passes.make_room()
    assert not passes._recorded


def test_a_refusal_is_told_and_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    passes, run = passes_of(["mlp"])
    recorder.error = RuntimeError("the capture was invalidated")  # what its end says, after what failed
    recorder.error.__context__ = RuntimeError("operation not permitted when stream is capturing\nSee ...")
    for _ in range(2):
        run(2, 4)
    why = "RuntimeError: operation not permitted when stream is capturing"
    assert passes.told() == {"shapes": 0, "refused": why}
    recorder.error = None
    for _ in range(2):
        run(2, 4)
    assert not recorder.shapes


def test_what_layers_add_to_the_loss_is_never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a layer says of itself."""
    recorder = Recorder(monkeypatch)
    passes, _ = passes_of([{"moe": {"experts": 2, "top_k": 1, "balance": 0.1}}])
    for _ in range(3):
        call, ids_bl = Call(), torch.ones(2, 4, dtype=torch.long)
        passes.prepare([ids_bl])
        passes(ids_bl, call)
        assert len(call.losses) == 1
    assert not recorder.shapes
    assert passes.told() == {"shapes": 0, "refused": "layers add to the loss"}


def test_a_step_records_before_its_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three lengths; batches of each differ in size from step to step."""
    recorder = Recorder(monkeypatch)
    one = trainer_of_three()
    one.passes = RecordedPasses(one.model, nullcontext)
    happened: list[tuple[str, tuple[int, ...]]] = []
    one.model.register_forward_pre_hook(lambda _, given: happened.append(("pass", tuple(given[0].shape))))
    before = recorder.record

    def record(run: nn.Module, given: tuple[torch.Tensor, ...], **more: Any) -> None:
        before(run, given, **more)
        happened.append(("record", tuple(given[0].shape)))

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    for _ in range(6):
        happened.clear()
        one.train_step()
        kinds = [kind for kind, _ in happened]
        assert kinds == sorted(kinds, reverse=True)
        assert kinds.count("pass") == 3
    assert len(recorder.shapes) >= 3


def test_a_recording_keeps_the_tables_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch)
    passes, run = passes_of([{"attention": {"heads": 2}}])
    for _ in range(2):
        run(2, 4)
    rope = passes.model.get_submodule("layers.0.layer.rope")
    ((cos, sin),) = rope._cached.values()
    kept = {id(tensor) for tensor in passes._recorded[torch.Size((2, 4))].reads}
    run(1, 1000)
    assert next(iter(rope._cached.values()))[0] is not cos
    assert {id(cos), id(sin)} <= kept


def test_a_cpu_runs_kernel_by_kernel() -> None:
    data = DataSpec.model_validate({"mixture": {"reference": 1}})
    stream = MixtureStream(data, context=16, tokens_per_step=32, seed=0)
    spec = TrainingSpec(tokens=64, context=16, tokens_per_step=32)
    model = compile_model(ModelSpec.model_validate({"tokenizer": "bytes", "d_model": 16, "layers": ["mlp"]}))
    assert Trainer(model, stream, spec).passes is None
