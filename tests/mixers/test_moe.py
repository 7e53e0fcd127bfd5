"""Mixtures of experts against every expert run on every token, and routers against sorted lists.

Shape suffixes: n tokens, e experts, k experts of a token, d width, u outputs of an up projection, f hidden
width, b batch, l length.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import inputs, layer_of, mixer_of
from contract.strategies import moe_fields
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from archsearch.mixers.base import Call
from archsearch.mixers.mlp import ACTIVATIONS
from archsearch.mixers.moe import Experts, Router, balance_loss, experts_reference, rebalance
from archsearch.spec.errors import FieldError
from archsearch.spec.layers.mlp import GATED

D_MODEL = 16


def router_of(fields: dict[str, Any], width: int = D_MODEL, seed: int = 0) -> Router:
    """A router in float64, its selection bias (if any) off zero."""
    generator = torch.Generator().manual_seed(seed)
    router = Router(layer_of("moe", fields, width), width).double()
    router.reset_parameters(generator)
    if router.selection_bias is not None:
        router.selection_bias.uniform_(-0.3, 0.3, generator=generator)
    return router


def routed(router: Router, x_nd: Tensor) -> tuple[Tensor, Tensor]:
    scores_ne, expert_nk = router(x_nd)
    return expert_nk, router.weigh(scores_ne, expert_nk)


@settings(max_examples=150)
@given(fields=moe_fields(D_MODEL), seed=st.integers(0, 99))
def test_routing_by_hand(fields: dict[str, Any], seed: int) -> None:
    """One token at a time, in plain Python: score, keep the best groups, keep the best experts, weigh."""
    router, x_nd = router_of(fields, seed=seed), inputs(1, 5, D_MODEL, seed)[0]
    spec = router.spec
    with torch.no_grad():
        expert_nk, weight_nk = routed(router, x_nd)
        logits_ne = x_nd @ router.weight.T
    size = spec.experts // spec.groups
    for logits, experts, weights in zip(logits_ne, expert_nk.tolist(), weight_nk.tolist(), strict=True):
        score = (logits.softmax(0) if spec.router == "softmax" else 1 / (1 + (-logits).exp())).tolist()
        bias = [0.0] * spec.experts if router.selection_bias is None else router.selection_bias.tolist()
        rank = [a + b for a, b in zip(score, bias, strict=True)]
        worth = [sum(sorted(rank[g * size : (g + 1) * size])[-2:]) for g in range(spec.groups)]
        open_groups = sorted(range(spec.groups), key=lambda g: -worth[g])[: spec.top_groups]
        open_experts = [e for e in range(spec.experts) if e // size in open_groups]
        chosen = sorted(open_experts, key=lambda e: -rank[e])[: spec.top_k]
        assert experts == chosen
        total = sum(score[e] for e in chosen) + spec.renormalise_eps if spec.renormalise else 1.0
        assert weights == pytest.approx([spec.routed_scale * score[e] / total for e in chosen], rel=1e-12)


@pytest.mark.parametrize("precision", ["bfloat16", "autocast"])
def test_routers_do_not_round(precision: str) -> None:
    router = router_of({"experts": 64, "top_k": 8}).bfloat16()
    x_nd = inputs(1, 200, D_MODEL)[0].bfloat16()
    truth = copy.deepcopy(router).double()(x_nd.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        scores_ne, expert_nk = router(x_nd)
    assert scores_ne.dtype == torch.float32
    assert torch.equal(expert_nk, truth[1])
    torch.testing.assert_close(scores_ne.double(), truth[0], rtol=1e-5, atol=0)


def arguments(activation: str, n: int, e: int, k: int, seed: int) -> list[Tensor]:
    """x, choices (uneven: some experts get nothing), weights, up and down projections."""
    g = torch.Generator().manual_seed(seed)
    draw = {"generator": g, "dtype": torch.float64}
    lean_e = torch.linspace(0, 3, e)
    expert_nk = (torch.randn(n, e, generator=g) + lean_e).topk(k).indices
    up = 2 if activation in GATED else 1
    x_nd, weight_nk = torch.randn(n, 6, **draw), torch.randn(n, k, **draw)
    up_eud, down_edf = torch.randn(e, up * 5, 6, **draw), torch.randn(e, 4, 5, **draw)
    return [t.requires_grad_(t.is_floating_point()) for t in (x_nd, expert_nk, weight_nk, up_eud, down_edf)]


def native(x_nd: Tensor, expert_nk: Tensor, weight_nk: Tensor, up: Tensor, down: Tensor, act: str) -> Tensor:
    fields = {"experts": len(up), "top_k": expert_nk.shape[1], "hidden": 5, "activation": act}
    experts: Any = Experts(layer_of("moe", fields, 6), 6, 4)
    del experts.up_proj, experts.down_proj
    experts.up_proj, experts.down_proj = up, down
    return experts(x_nd, expert_nk, weight_nk)


@settings(max_examples=80)
@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    n=st.sampled_from([1, 2, 3, 17, 64]),
    e=st.integers(1, 9),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_sorted_experts_are_all_experts_weighed(
    activation: str, n: int, e: int, seed: int, data: st.DataObject
) -> None:
    tensors = arguments(activation, n, e, data.draw(st.integers(1, e)), seed)
    leaves = [t for t in tensors if t.requires_grad]
    results = []
    for compute in (native, experts_reference):
        y_nd = compute(*tensors, activation)
        weigh = torch.linspace(-1, 2, y_nd.numel(), dtype=y_nd.dtype).view_as(y_nd)
        results.append([y_nd, *torch.autograd.grad((y_nd.sin() * weigh).sum(), leaves)])
    for found, truth in zip(*results, strict=True):
        assert (found - truth).abs().max() <= 1e-11 * truth.abs().max().clamp_min(1)


@pytest.mark.parametrize("project", [True, False], ids=["projected", "inner"])
@pytest.mark.parametrize("latent", [None, 12])
def test_the_layer_by_hand(latent: int | None, project: bool) -> None:
    fields = {"experts": 5, "hidden": 7, "shared": 9, "shared_gate": True, "bias": True, "latent": latent}
    mixer, x_nd = mixer_of("moe", fields, project), inputs(1, 11)[0]
    with torch.no_grad():
        expert_nk, weight_nk = routed(mixer.router, x_nd)
        rows_nd = x_nd if latent is None else mixer.latent_down(x_nd)
        up, down = mixer.experts.up_proj, mixer.experts.down_proj
        down = torch.eye(7, dtype=up.dtype).expand(5, 7, 7) if down is None else down
        y_nd = experts_reference(rows_nd, expert_nk, weight_nk, up, down, "swiglu")
        if latent is not None and project:
            y_nd = mixer.latent_up(y_nd)
        gate_nd, value_nd = mixer.shared.up_proj(x_nd).chunk(2, -1)
        shared_nd = F.silu(gate_nd) * value_nd
        shared_nd = mixer.shared.down_proj(shared_nd) if project else shared_nd
        shared_nd = torch.sigmoid(x_nd @ mixer.shared_gate.weight[0])[:, None] * shared_nd
        truth_nd = y_nd + shared_nd if project else torch.cat([y_nd, shared_nd], -1)
        torch.testing.assert_close(mixer(x_nd[None])[0], truth_nd, rtol=1e-11, atol=1e-12)


def test_an_expert_without_tokens_computes_nothing() -> None:
    tensors = arguments("relu2", 12, 4, 2, 0)
    x_nd, _, weight_nk, up_eud, down_edf = tensors
    expert_nk = torch.tensor([[0, 2]]).expand(12, 2)
    with torch.no_grad():
        for unused in (1, 3):
            up_eud[unused] = torch.nan
    with FlopCounterMode(display=False) as counter:
        y_nd = native(x_nd, expert_nk, weight_nk, up_eud, down_edf, "relu2")
    assert counter.get_total_flops() == 12 * 2 * 2 * (6 * 5 + 5 * 4)
    y_nd.sum().backward()
    assert up_eud.grad is not None
    assert up_eud.grad[[0, 2]].any()
    assert not up_eud.grad[[1, 3]].any()


def test_the_same_twice_to_the_bit() -> None:
    def run() -> list[Tensor]:
        mixer = mixer_of("moe", {"experts": 16, "top_k": 5, "shared": 8}).float()
        x_bld = inputs(3, 200).float().requires_grad_()
        y_bld = mixer(x_bld)
        return [y_bld, *torch.autograd.grad(y_bld.square().sum(), [x_bld, *mixer.parameters()])]

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_balance_loss_by_hand(router: str) -> None:
    scores_ne = inputs(1, 9, 6)[0]
    scores_ne = scores_ne.softmax(-1) if router == "softmax" else scores_ne.sigmoid()
    expert_nk = scores_ne.topk(2).indices
    truth = 0.0
    for e in range(6):
        load = sum(e in row for row in expert_nk.tolist()) / 9
        truth += 6 * load * sum((row[e] / row.sum()).item() for row in scores_ne) / 9
    assert balance_loss(scores_ne, expert_nk).item() == pytest.approx(truth, rel=1e-12)
    even_ne, turns_nk = torch.full((6, 6), 1 / 6), torch.arange(12).view(6, 2) % 6
    assert balance_loss(even_ne, turns_nk).item() == pytest.approx(2)


def test_balance_loss_gives_a_router_that_prefers_one_expert_a_way_back() -> None:
    logits_ne = inputs(1, 64, 4)[0]
    logits_ne[:, 1] += 3
    logits_ne.requires_grad_()
    scores_ne = logits_ne.softmax(-1)
    balance_loss(scores_ne, scores_ne.topk(1).indices).backward()
    assert logits_ne.grad is not None
    slope_e = logits_ne.grad.sum(0)
    assert slope_e[1] > 0
    assert (slope_e[[0, 2, 3]] < 0).all()


BIASED = {"experts": 6, "selection_bias": True, "balance": 0.5, "router": "sigmoid"}


def test_only_training_teaches_the_router() -> None:
    mixer, x_bld = mixer_of("moe", BIASED), inputs(2, 9)

    def taught(call: Call) -> tuple[int, int]:
        mixer.router.load_e.zero_()
        mixer(x_bld, call)
        return len(call.losses), int(mixer.router.load_e.sum())

    call = Call()
    assert taught(call) == (1, 2 * 9 * 2)
    expected = 0.5 * balance_loss(*mixer.router(x_bld.flatten(0, 1)))
    torch.testing.assert_close(call.losses[0], expected, rtol=1e-12, atol=0)
    with torch.no_grad():
        assert taught(Call()) == (0, 0)
    mixer.eval()
    assert taught(Call()) == (0, 0)
    still = mixer_of("moe", {"experts": 6, "selection_bias": True, "balance": 0, "bias_rate": 0})
    call = Call()
    still(x_bld, call)
    assert not call.losses
    assert not still.router.load_e.any()


def test_padding_is_no_load() -> None:
    mixer, x_bld = mixer_of("moe", BIASED), inputs(2, 9)
    mask_bl = torch.arange(9) >= torch.tensor([4, 0])[:, None]
    calls = [Call(mask=mask_bl), Call(mask=mask_bl), Call()]
    mixer(x_bld, calls[0])
    load_e = mixer.router.load_e.clone()
    # Whatever stands at padding, and as if it were not there.
    mixer(torch.where(mask_bl[..., None], x_bld, -7 * x_bld), calls[1])
    assert torch.equal(mixer.router.load_e, 2 * load_e)
    mixer(x_bld[mask_bl][None], calls[2])
    assert torch.equal(mixer.router.load_e, 3 * load_e)
    assert load_e.sum() == (5 + 9) * 2
    losses = torch.stack([call.losses[0] for call in calls])
    torch.testing.assert_close(losses, losses[:1].expand(3), rtol=1e-12, atol=0)


def test_rebalancing_by_hand() -> None:
    router = router_of({"experts": 4, "selection_bias": True, "bias_rate": 0.25})
    assert router.selection_bias is not None
    before = router.selection_bias.clone()
    router.load_e += torch.tensor([9, 3, 0, 0])
    rebalance(torch.nn.Sequential(router))
    # The mean load is 3.
    torch.testing.assert_close(router.selection_bias - before, before.new_tensor([-0.25, 0, 0.25, 0.25]))
    assert not router.load_e.any()
    rebalance(router)
    torch.testing.assert_close(router.selection_bias - before, before.new_tensor([-0.25, 0, 0.25, 0.25]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_small_steps_are_not_rounded_away(dtype: torch.dtype) -> None:
    router = router_of({"experts": 2, "selection_bias": True, "router": "sigmoid"}).float()
    assert router.selection_bias is not None
    router.selection_bias.fill_(0.7)
    router = router.to(dtype)
    for _ in range(10):
        router.load_e += torch.tensor([1, 0])
        router.rebalance()
    assert router.selection_bias.dtype == torch.promote_types(dtype, torch.float32)
    assert router.selection_bias.tolist() == pytest.approx([0.69, 0.71], rel=1e-5)
    assert router.weight.dtype == dtype


def test_moving_biases_spread_the_load() -> None:
    """A router that always prefers the same experts is led to use all of them."""
    router = router_of({"experts": 8, "router": "sigmoid", "selection_bias": True, "bias_rate": 0.02})
    assert router.selection_bias is not None
    router.selection_bias.zero_()
    with torch.no_grad():
        router.weight[:, 0] += torch.linspace(-2, 2, 8)
    x_nd = inputs(1, 512, D_MODEL)[0]
    x_nd[:, 0] = 1

    def load() -> Tensor:
        return router(x_nd)[1].flatten().bincount(minlength=8)

    first = load()
    for _ in range(100):
        router.load_e += load()
        router.rebalance()
    assert first.max() > 3 * first.float().mean()
    assert first.min() == 0
    assert load().max() < 1.5 * first.float().mean()
    assert load().min() > 0.5 * first.float().mean()


def test_what_is_saved() -> None:
    mixer = mixer_of("moe", {"selection_bias": True, "shared": 8, "shared_gate": True, "latent": 12})
    assert {name: tuple(tensor.shape) for name, tensor in mixer.state_dict().items()} == {
        "router.weight": (8, 64),
        "router.selection_bias": (8,),
        "latent_down.weight": (12, 64),
        "latent_up.weight": (64, 12),
        "experts.up_proj": (8, 2 * 88, 12),
        "experts.down_proj": (8, 12, 88),
        "shared.up_proj.weight": (16, 64),
        "shared.down_proj.weight": (64, 8),
        "shared_gate.weight": (1, 64),
    }
    assert "router.selection_bias" not in dict(mixer.named_parameters())
    assert "router.selection_bias" not in mixer_of("moe", {}).state_dict()


def test_experts_are_drawn_as_linear_layers_are() -> None:
    mixer: Any = mixer_of("moe", {"experts": 32, "hidden": 48})
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    for weight in (mixer.router.weight, mixer.experts.up_proj, mixer.experts.down_proj):
        bound = weight.shape[-1] ** -0.5
        assert 0.98 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_costs_by_hand() -> None:
    # 8/3 of 64 is 176 for a lone MLP; half of it for each of two experts.
    layer = layer_of("moe", {"shared": 10, "shared_gate": True, "bias": True})
    expert, shared = 3 * 64 * 88, 64 * 20 + 20 + 10 * 64 + 64
    assert layer.params(64) == 8 * 64 + 8 * expert + shared + 64
    assert layer.active_params(64) == 8 * 64 + 2 * expert + shared + 64
    assert layer.flops(64, 10) == 2 * (8 * 64 + 2 * expert + 3 * 64 * 10 + 64)
    assert layer.state_bytes(64, 10, 4) == 0
    # Experts between two latent projections, which bear the bias; ungated.
    layer = layer_of("moe", {"latent": 6, "hidden": 5, "activation": "relu2", "bias": True, "top_k": 3})
    latent = 64 * 6 + 6 + 6 * 64 + 64
    assert layer.params(64) == 8 * 64 + 8 * 2 * 6 * 5 + latent
    assert layer.active_params(64) == 8 * 64 + 3 * 2 * 6 * 5 + latent
    assert layer.flops(64, 10) == 2 * (8 * 64 + 3 * 2 * 6 * 5 + 2 * 64 * 6)
    # Without the projection back, an expert still writes the latent stream.
    assert layer.params(64) - layer.params(64, project=False) == 6 * 64 + 64
    assert layer.inner_width(64) == 6
    assert layer_of("moe", {"hidden": 5, "shared": 3}).inner_width(64) == 8


@pytest.mark.parametrize("latent", [None, 6])
def test_further_inputs_are_read_by_router_and_experts_alike(latent: int | None) -> None:
    fields = {"experts": 3, "hidden": 5, "shared": 7, "shared_gate": True, "inputs": ["embedding"]}
    fields |= {"latent": latent}
    layer, mixer = layer_of("moe", fields), mixer_of("moe", fields)
    assert mixer(torch.cat([inputs(1, 4), inputs(1, 4, seed=1)], -1)).shape == (1, 4, 64)
    assert sum(p.numel() for p in mixer.parameters()) == layer.params(64)
    expert = 128 * 10 + 5 * 64 if latent is None else 6 * 10 + 5 * 6
    common = 3 * 128 + 128 * 14 + 7 * 64 + 128 + (0 if latent is None else 128 * 6 + 6 * 64)
    assert layer.params(64) == common + 3 * expert
    assert layer.flops(64, 9) == 2 * (common + 2 * expert)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"renormalise": True, "bias_rate": 0.0, "balance": 0.01, "top_groups": 1, "hidden": 88}),
        ({"top_k": 1}, {"renormalise": False, "hidden": 176}),
        ({"top_k": 1, "renormalise": True}, {"renormalise": True}),
        ({"top_k": 8, "hidden": 3, "groups": 4}, {"top_groups": 4, "hidden": 3}),
        ({"selection_bias": True}, {"bias_rate": 0.001, "balance": 0.0}),
        ({"selection_bias": True, "bias_rate": 0}, {"bias_rate": 0.0, "balance": 0.01}),
        ({"selection_bias": True, "balance": 0.1}, {"bias_rate": 0.001, "balance": 0.1}),
    ],
    ids=str,
)
def test_what_defaults_become(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    layer = layer_of("moe", fields)
    assert {name: getattr(layer, name) for name in expected} == expected
    assert layer.resolve(64) == layer


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"top_k": 9}, "top_k", "cannot use 9 of 8 experts"),
        ({"groups": 3}, "groups", "3 groups do not divide 8 experts"),
        ({"groups": 4, "top_groups": 5}, "top_groups", "5 top_groups of only 4 groups"),
        (
            {"groups": 4, "top_groups": 1, "top_k": 3},
            "top_k",
            "cannot use 3 of the 2 experts in its top_groups",
        ),
        ({"bias_rate": 0.1}, "bias_rate", "no selection_bias to move"),
        ({"shared_gate": True}, "shared_gate", "no shared expert to gate"),
        ({"bias": True}, "bias", "routed experts have none"),
    ],
    ids=str,
)
def test_what_cannot_hold(fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        layer_of("moe", fields)
    assert caught.value.field == field


def test_steps_do_not_wait_for_other_sequences() -> None:
    """No capacity: what a token gets does not depend on who else asks for its experts."""
    mixer = mixer_of("moe", {"experts": 4, "top_k": 1})
    x_bd = inputs(1, 1)[0].expand(50, 64)
    with torch.no_grad():
        crowd_bd, alone_bd = mixer.step(x_bd, ())[0], mixer.step(x_bd[:1], ())[0]
    torch.testing.assert_close(crowd_bd, alone_bd.expand(50, 64), rtol=1e-12, atol=1e-12)
