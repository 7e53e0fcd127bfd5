"""What layers tell each other and hold, and what stands before a sequence, against formulas written out.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.building import continued, ids_of, model_of, relative
from torch import Tensor

from archsearch import compile_model
from archsearch.mixers.base import Call
from archsearch.spec import ModelSpec, model_cost

MLP = {"mlp": {"hidden": 8}}
RECURRENT = {"mamba2": {"head_dim": 4, "d_state": 3, "bias": True}}
HEADS = {"heads": 2, "kv_heads": 1}


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"vocab_size": 19, "d_model": 16, "layers": [MLP], **fields})


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


ZAMBA: list[Any] = [
    RECURRENT,
    {
        "sequential": {
            "norm": "none",
            "layers": [
                {
                    "sequential": {
                        "norm": "none",
                        "residual": True,
                        "layers": [
                            {
                                "attention": {
                                    **HEADS,
                                    "head_dim": 4,
                                    "inputs": ["embedding"],
                                    "norm": "pre",
                                    "id": "shared_attention",
                                }
                            },
                            {"mlp": {"hidden": 8, "residual": False, "lora": 2, "id": "shared_mlp"}},
                            {"linear": {"residual": False, "norm": "none"}},
                        ],
                    }
                },
                {"mamba2": {"head_dim": 4, "d_state": 3, "residual": False}},
            ],
        }
    },
    {"share": "shared_attention", "lora": 3},
    {"share": "shared_mlp", "lora": 2},
    {"share": "shared_mlp"},
]

MODELS: dict[str, dict[str, Any]] = {
    "a shared block in another's place": {"layers": ZAMBA},
    "meta tokens": {"layers": [RECURRENT, {"attention": {**HEADS, "window": 5}}], "meta_tokens": 3},
    "meta tokens and learned positions": {
        "layers": [{"attention": {**HEADS, "rope": None}}],
        "meta_tokens": 2,
        "embedding": {"positions": {"learned": 40}},
    },
    "norm on entry": {
        "layers": [{"mlp": {"hidden": 8, "norm": "entry", "skip_scale": 3.5, "out_scale": 0.5}}, RECURRENT],
        "norm": {"unit_offset": True, "placement": "entry"},
    },
    "softcap": {"layers": [MLP, RECURRENT], "scales": {"softcap": 2.0, "logits": 3.0}},
    "an earlier block's output": {
        "layers": [
            {"mlp": {"hidden": 8, "id": "low"}},
            RECURRENT,
            {"mlp": {"hidden": 8, "inputs": ["low", "embedding"]}},
        ]
    },
    "keys and values of another": {
        "layers": [
            {"attention": {**HEADS, "id": "asked"}},
            RECURRENT,
            {"repeat": 2, "layers": [{"attention": {"heads": 4, "kv_from": "asked"}}]},
        ]
    },
    "keys and values under one projection": {
        "layers": [
            {
                "parallel": {
                    "branches": [{"attention": {**HEADS, "id": "asked"}}, {"mlp": {"hidden": 16}}],
                    "merge": {"mean": {"projection": "shared"}},
                }
            },
            {"attention": {"heads": 2, "kv_from": "asked"}},
        ]
    },
    "across branches": {
        "layers": [
            {
                "parallel": {
                    "branches": [
                        [{"mlp": {"hidden": 8}}, {"mlp": {"hidden": 4, "id": "left"}}],
                        {"mlp": {"hidden": 8, "inputs": ["left"]}},
                    ]
                }
            }
        ]
    },
}

every_model = pytest.mark.parametrize("fields", MODELS.values(), ids=list(MODELS))


@every_model
def test_steps_continue_a_prefill_and_costs_are_exact(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    model, ids_bl = model_of(spec), ids_of(spec, 2, 9)
    assert sum(p.numel() for p in model.parameters()) == model_cost(spec, 9).total.params
    logits, state = continued(model, ids_bl, 4)
    with torch.no_grad():
        assert relative(logits, model(ids_bl)) <= 1e-10
    assert state.bytes() == 2 * model_cost(spec, 9, "float64").total.state_bytes


@every_model
def test_every_parameter_learns(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    model = model_of(spec)
    model(ids_of(spec, 2, 9)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "positions.weight":
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@every_model
def test_left_padding_leaves_no_trace(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    model, ids_bl = model_of(spec), ids_of(spec, 3, 9)
    lengths = (9, 5, 1)
    mask_bl = torch.stack([torch.arange(9) >= 9 - length for length in lengths])
    with torch.no_grad():
        together = model(ids_bl, Call(mask_bl))
        prefilled, state = model.prefill(ids_bl, Call(mask_bl))
        stepped, _ = model.step(ids_bl[:, 0], state)
        for row, length in enumerate(lengths):
            alone, alone_state = model.prefill(ids_bl[row : row + 1, 9 - length :])
            assert relative(together[row, 9 - length :], alone[0]) <= 1e-10
            assert relative(prefilled[row, 9 - length :], alone[0]) <= 1e-10
            after, _ = model.step(ids_bl[row : row + 1, 0], alone_state)
            assert relative(stepped[row : row + 1], after) <= 1e-10


@every_model
def test_the_written_out_model_is_the_same_model(fields: dict[str, Any]) -> None:
    spec = spec_of(**fields)
    written = ModelSpec.model_validate(spec.resolved())
    assert written.hash == spec.hash
    assert written.canonical() == spec.canonical()
    assert ModelSpec.model_validate(spec.dump()).hash == spec.hash


def test_a_sequential_by_hand() -> None:
    fields = [{"mlp": {"hidden": 8}}, {"mlp": {"hidden": 4, "out_scale": 0.5, "in_scale": 2.0}}]
    spec = spec_of(layers=[{"sequential": {"layers": fields}}], final_norm=False)
    model, ids_bl = model_of(spec), ids_of(spec, 2, 5)
    with torch.no_grad():
        x = model.embedding.weight[ids_bl]
        (block,) = model.layers
        first, second = block.layer.layers
        y = first.layer(rms(x, block.norm.weight))
        y = y + 0.5 * second.layer(2.0 * rms(y, second.norm.weight))
        torch.testing.assert_close(model(ids_bl), (x + y) @ model.head.weight.T, rtol=1e-12, atol=1e-12)


def test_norm_on_entry_by_hand() -> None:
    mlp = {"mlp": {"hidden": 8, "norm": "entry", "skip_scale": 3.0, "out_scale": 0.5}}
    spec = spec_of(layers=[mlp], final_norm=False)
    model, ids_bl = model_of(spec), ids_of(spec, 2, 5)
    with torch.no_grad():
        n = rms(model.embedding.weight[ids_bl], model.layers[0].norm.weight)
        expected = (3.0 * n + 0.5 * model.layers[0].layer(n)) @ model.head.weight.T
        torch.testing.assert_close(model(ids_bl), expected, rtol=1e-12, atol=1e-12)


def test_a_low_rank_term_is_one_uses_own() -> None:
    layers = [{"mlp": {"hidden": 8, "id": "a"}}, {"share": "a", "lora": 2}, {"share": "a"}]
    model = model_of(spec_of(layers=layers, final_norm=False))
    plain, adapted, again = model.layers
    assert again is plain
    assert adapted.layer.down_proj.weight is plain.layer.down_proj.weight
    assert adapted.norm.weight is plain.norm.weight
    x = torch.randn(2, 16, dtype=torch.float64)
    up = adapted.layer.up_proj
    delta = (x @ up.down[0].weight.T) @ up.up[0].weight.T
    torch.testing.assert_close(up(x), plain.layer.up_proj(x) + delta, rtol=1e-12, atol=1e-12)


def test_low_rank_terms_start_at_nothing() -> None:
    layers = [{"mlp": {"hidden": 8, "id": "a"}}, {"share": "a", "lora": 2}]
    ids_bl = ids_of(spec_of(layers=layers), 2, 5)
    adapted, plain = (
        compile_model(spec_of(layers=[layers[0], share])) for share in (layers[1], {"share": "a"})
    )
    torch.testing.assert_close(adapted(ids_bl), plain(ids_bl))


def test_meta_tokens_are_read_and_not_answered() -> None:
    spec = spec_of(layers=[{"attention": HEADS}], meta_tokens=3, embedding={"std": 1.0})
    model, ids_bl = model_of(spec), ids_of(spec, 2, 5)
    before = model(ids_bl)
    assert before.shape == (2, 5, 19)
    with torch.no_grad():
        model.meta_tokens.mul_(-1)
    assert relative(model(ids_bl)[:, 0], before[:, 0]) > 1e-3


def test_losses_of_layers_reach_the_caller() -> None:
    class Leaves(torch.nn.Module):
        def forward(self, x: Tensor, call: Call) -> Tensor:
            call.losses.append(x.square().mean())
            return x

    spec = spec_of()
    model = model_of(spec)
    model.layers[0].layer = Leaves()
    call = Call()
    model(ids_of(spec, 2, 5), call)
    (loss,) = call.losses
    assert loss.ndim == 0


MEMORY = {"mamba2": {"head_dim": 4, "d_state": 3, "id": "m"}}
KEYS = {"attention": {**HEADS, "id": "a"}}
BRANCHES: dict[str, tuple[list[Any], bool]] = {
    "apart": ([KEYS, MEMORY], True),
    "nested apart": ([[MLP, {"parallel": {"branches": [KEYS, MLP], "merge": "sum"}}], MEMORY], True),
    "keys of another": ([KEYS, {"attention": {**HEADS, "kv_from": "a"}}], False),
    "memory of another": ([MLP, MEMORY, {"gated_memory": {"memory_from": "m"}}], False),
    "output of one inside another": ([[MLP, KEYS], [MLP, {"mlp": {"hidden": 8, "inputs": ["a"]}}]], False),
    "a block of another": ([KEYS, {"share": "a"}], False),
    "keys within a branch": ([[KEYS, {"attention": {**HEADS, "kv_from": "a"}}], MLP], True),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_overlap_only_where_none_reads_another(name: str) -> None:
    branches, apart = BRANCHES[name]
    model = compile_model(spec_of(layers=[{"parallel": {"branches": branches, "merge": "sum"}}]))
    assert model.layers[0].layer.overlap is apart


def test_branches_that_run_a_block_from_before_do_not_overlap() -> None:
    both = {"parallel": {"branches": [{"share": "a"}, {"share": "a"}], "merge": "sum"}}
    assert not compile_model(spec_of(layers=[KEYS, both])).layers[1].layer.overlap


def test_branches_may_read_what_came_before_them_all_and_overlap() -> None:
    reading = {"attention": {**HEADS, "kv_from": "a"}}
    both = {"parallel": {"branches": [reading, reading], "merge": "sum"}}
    assert compile_model(spec_of(layers=[KEYS, both])).layers[1].layer.overlap
