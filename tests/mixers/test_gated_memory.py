"""Gated memory units, by hand and beside every layer whose memory they can read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import continued, ids_of, inputs, layer_of, model_of, random, relative

from archsearch.mixers.base import Call, Surroundings
from archsearch.mixers.gated_memory import GatedMemoryMixer
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec, SpecError, model_cost, parse_spec
from archsearch.spec.entries import layer_kinds

SOURCES: dict[str, dict[str, Any]] = {
    "mamba1": {"d_state": 3, "heads": 2},
    "mamba2": {"d_state": 4, "head_dim": 8},
    "gated_deltanet": {"key_dim": 4, "value_dim": 6, "key_heads": 2},
    "kda": {"heads": 3, "head_dim": 5},
    "lightning": {"heads": 4},
    "rglru": {"width": 36, "heads": 2},
}


def stack(kind: str) -> ModelSpec:
    """A source, something between, and two readers of which one is in a parallel."""
    reader = {"gated_memory": {"memory_from": "m"}}
    layers = [
        {kind: {**SOURCES[kind], "id": "m"}},
        "mlp",
        reader,
        {"parallel": {"branches": ["mlp", reader]}},
    ]
    return ModelSpec.model_validate({"vocab_size": 17, "d_model": 32, "layers": layers})


def test_every_kind_that_tells_is_held_here() -> None:
    telling = {kind for kind, cls in layer_kinds().items() if "memory" in cls.tells and kind in MIXERS}
    assert set(SOURCES) == telling


def test_unit_by_hand() -> None:
    mixer = GatedMemoryMixer(layer_of("gated_memory", {"width": 10}), Surroundings(64)).double()
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    mixer.reading = {"memory": "somewhere"}
    x, memory = inputs(2, 5), random(2, 5, 10, seed=1)
    gate = F.silu(x @ mixer.in_proj.weight.T)
    truth = (memory * gate) @ mixer.out_proj.weight.T  # type: ignore[union-attr]
    torch.testing.assert_close(mixer(x, Call(streams={"somewhere": memory})), truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SOURCES)
def test_memory_is_what_comes_before_gate_and_norm(kind: str) -> None:
    """Other weights of gate and norm change what comes out, and not what is told."""
    layer = layer_of(kind, SOURCES[kind])
    mixer: Any = MIXERS[kind](layer, Surroundings(64))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    mixer = mixer.double()
    mixer.telling = {"memory": "told"}
    x, call = inputs(2, 70), Call()
    with torch.no_grad():
        inner = mixer(x, call)
        told = call.streams["told"]
        assert told.shape == (2, 70, layer.inner_width(64))
        if kind == "mamba1":  # no norm, and its gate is the second half of in_proj
            mixer.in_proj.weight[mixer.inner :] *= 3
        else:
            for parameter in (mixer.linear_y if kind == "rglru" else mixer.norm).parameters():
                parameter.mul_(3)
        again = Call()
        assert not torch.equal(mixer(x, again), inner)
        assert torch.equal(again.streams["told"], told)
        # What a prefill and a step tell is the same.
        stepped = Call()
        _, state = mixer.prefill(x[:, :60], stepped)
        assert relative(stepped.streams["told"], told[:, :60]) <= 1e-10
        mixer.step(x[:, 60], state, stepped)
        assert relative(stepped.streams["told"], told[:, 60]) <= 1e-10


@pytest.mark.parametrize("kind", SOURCES)
def test_readers_in_a_model(kind: str) -> None:
    spec = stack(kind)
    model, ids = model_of(spec), ids_of(spec, 2, 71)
    assert sum(p.numel() for p in model.parameters()) == model_cost(spec).total.params
    logits, _ = continued(model, ids, 66)
    with torch.no_grad():
        assert relative(logits, model(ids)) <= 1e-10


def test_the_source_learns_through_its_readers() -> None:
    model = model_of(stack("mamba2"))
    source = model.layers[0].layer
    with torch.no_grad():
        source.out_proj.weight.zero_()
    model(ids_of(stack("mamba2"), 1, 9)).square().sum().backward()
    assert source.in_proj.weight.grad.any()


def test_costs_by_hand() -> None:
    spec = stack("rglru")
    cost = model_cost(spec, 10).layers[2].cost
    assert cost.params == 2 * 32 * 36 + 32  # the norm's weights too
    assert cost.flops == 2 * 2 * 32 * 36
    assert cost.state_bytes == 0


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("[gated_memory]", "it reads another layer's memory; give that layer's id"),
        ("[gated_memory: {memory_from: m}]", "unknown id 'm'; no layer above it has an id"),
        ("[mlp: {id: m}, gated_memory: {memory_from: m}]", "mlp has no memory to read"),
        (
            "[mamba2: {id: m, head_dim: 16}, gated_memory: {memory_from: m, width: 30}]",
            "the memory has 64 channels, not 30; width may be left",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(layers: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(f"vocab_size: 9\nd_model: 32\nlayers: {layers}\n")
