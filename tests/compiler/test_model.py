"""The model around its mixers: blocks, branches, sharing, embeddings, scales.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.building import ids_of, model_of
from torch import Tensor

from archsearch import compile_model
from archsearch.mixers.base import Call
from archsearch.mixers.kernels import KernelError
from archsearch.spec import ModelSpec

MLP = {"mlp": {"hidden": 8}}


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"vocab_size": 19, "d_model": 16, "layers": [MLP], **fields})


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def check(spec: ModelSpec, expected: Any) -> None:
    """The model's logits are those that `expected(model, embeddings)` gives before the final norm."""
    model, ids_bl = model_of(spec), ids_of(spec, 2, 5)
    with torch.no_grad():
        x_bld = expected(model, model.embedding.weight[ids_bl])
        if model.final_norm is not None:
            x_bld = rms(x_bld, model.final_norm.weight)
        head = model.embedding.weight if model.head is None else model.head.weight
        torch.testing.assert_close(model(ids_bl), x_bld @ head.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post", "sandwich", "none"])
def test_norm_placements(norm: str, residual: bool) -> None:
    def expected(model: Any, x: Tensor) -> Tensor:
        (block,) = model.layers
        y = rms(x, block.norm.weight) if norm in ("pre", "sandwich") else x
        y = block.layer(y)
        y = rms(y, block.post_norm.weight) if norm in ("post", "sandwich") else y
        return x + 0.5 * y if residual else y

    fields = {"layers": [{"mlp": {"hidden": 8, "norm": norm, "residual": residual}}]}
    check(spec_of(scales={"residual": 0.5}, **fields), expected)
    placed = spec_of(norm={"placement": norm}, layers=[{"mlp": {"hidden": 8, "residual": residual}}])
    assert placed.hash == spec_of(**fields).hash


def test_a_branch_begins_bare_and_goes_on_in_residual_blocks() -> None:
    spec = spec_of(layers=[{"parallel": {"branches": [[MLP, MLP], MLP], "merge": "subtract"}}])

    def expected(model: Any, x: Tensor) -> Tensor:
        (block,) = model.layers
        (first, second), (other,) = block.layer.branches
        assert first.norm is None
        assert other.norm is None
        inner = rms(x, block.norm.weight)
        y = first.layer(inner)
        y = y + second.layer(rms(y, second.norm.weight))
        return x + y - other.layer(inner)

    check(spec, expected)


def test_a_token_gate_reads_the_normed_input() -> None:
    spec = spec_of(layers=[{"parallel": {"branches": [MLP, MLP], "merge": {"gate": {"by": "token"}}}}])

    def expected(model: Any, x: Tensor) -> Tensor:
        (block,) = model.layers
        inner = rms(x, block.norm.weight)
        shares = (inner @ block.layer.merge.gate_proj.weight.T).softmax(-1)
        (a,), (b,) = block.layer.branches
        return x + shares[..., :1] * a(inner, Call()) + shares[..., 1:] * b(inner, Call())

    check(spec, expected)


def test_scales_and_learned_positions() -> None:
    spec = spec_of(
        scales={"embedding": 3.0, "logits": 0.25}, embedding={"positions": {"learned": 7}}, final_norm=False
    )
    model, ids_bl = model_of(spec), ids_of(spec, 2, 7)
    with torch.no_grad():
        x = 3.0 * model.embedding.weight[ids_bl] + model.positions.weight
        expected = 0.25 * (model.layers[0](x, Call()) @ model.head.weight.T)
        torch.testing.assert_close(model(ids_bl), expected, rtol=1e-10, atol=1e-10)
        with pytest.raises(ValueError, match="position 8 is beyond the 7 learned positions"):
            model(ids_of(spec, 1, 8))
        _, state = model.prefill(ids_bl)
        with pytest.raises(ValueError, match="position 8 is beyond"):
            model.step(ids_bl[:, 0], state)


def test_a_tied_head_is_the_embedding() -> None:
    spec = spec_of(embedding={"tied": True})
    model = model_of(spec)
    assert model.head is None
    check(spec, lambda model, x: model.layers[0](x, Call()))


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_were_not_read_learn_through_a_tied_head_alone(tied: bool) -> None:
    model = model_of(spec_of(embedding={"tied": tied}))
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    assert bool(model.embedding.weight.grad[4:].any()) == tied


def test_a_shared_layer_is_one_module_with_a_cache_a_call() -> None:
    layers = [{"attention": {"heads": 2, "id": "a"}}, MLP, {"share": "a"}, {"share": "a"}]
    model = model_of(spec_of(layers=layers))
    first, _, second, third = model.layers
    assert first is second
    assert second is third
    with torch.no_grad():
        _, state = model.prefill(ids_of(model.spec, 1, 4))
    caches = [state.layers[i].cache.k_bgte for i in (0, 2, 3)]
    assert not torch.equal(caches[0], caches[1])
    assert not torch.equal(caches[1], caches[2])
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in model_of(spec_of(layers=layers[:2])).parameters()
    )


def test_weights_depend_on_the_seed_alone() -> None:
    spec = spec_of(layers=["attention", {"mamba2": {"head_dim": 4}}, {"parallel": {"branches": [MLP, MLP]}}])
    torch.manual_seed(1)
    first = compile_model(spec, seed=3).state_dict()
    torch.manual_seed(2)
    again, other = compile_model(spec, seed=3).state_dict(), compile_model(spec, seed=4).state_dict()
    wide = compile_model(spec, seed=3, dtype=torch.float64).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name].double(), wide[name]) for name in first)
    assert not torch.equal(first["layers.0.layer.qkv_proj.weight"], other["layers.0.layer.qkv_proj.weight"])
    branches = [f"layers.2.layer.branches.{i}.0.layer.up_proj.weight" for i in (0, 1)]
    assert not torch.equal(first[branches[0]], first[branches[1]])


def test_module_names_are_the_paths_of_the_graph() -> None:
    spec = spec_of(layers=[MLP, {"parallel": {"branches": [MLP, [MLP, "attention"]]}}])
    model = compile_model(spec)
    modules = {name.replace(".layer.", "."): module for name, module in model.named_modules()}
    for top in spec.nodes:
        for node in top.walk():
            assert modules[node.path].node.path == node.path


def test_embeddings_begin_at_their_spread() -> None:
    spec = ModelSpec.model_validate(
        {"vocab_size": 4000, "d_model": 16, "layers": [MLP], "embedding": {"std": 0.3}}
    )
    assert compile_model(spec).embedding.weight.std().item() == pytest.approx(0.3, rel=0.02)


def test_an_empty_prompt_is_refused() -> None:
    model = compile_model(spec_of())
    with pytest.raises(ValueError, match="at least one token"):
        model.prefill(torch.zeros(1, 0, dtype=torch.long))


def test_required_kernels_are_required() -> None:
    with pytest.raises(KernelError, match="the model is on cpu"):
        compile_model(spec_of(layers=["attention", MLP]), kernels="require")
    compile_model(spec_of(layers=[MLP]), kernels="require")  # it would use none


def test_inference_mode_leaves_a_model_that_trains() -> None:
    model = compile_model(spec_of(layers=["attention", MLP]))
    with torch.inference_mode():
        model(ids_of(model.spec, 1, 4))
    model(ids_of(model.spec, 1, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_bfloat16_stays_near_float32() -> None:
    layers = ["attention", {"mamba2": {"head_dim": 4, "d_state": 8}}, MLP]
    narrow = compile_model(spec_of(layers=layers), dtype=torch.bfloat16)
    wide = compile_model(spec_of(layers=layers))
    ids_bl = ids_of(wide.spec, 2, 100)
    with torch.no_grad():
        found, truth = narrow(ids_bl), wide(ids_bl)
    assert found.dtype == torch.bfloat16
    assert (found.float() - truth).abs().max() < 0.1 * truth.abs().max()
