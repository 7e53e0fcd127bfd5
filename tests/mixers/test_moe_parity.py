"""The expert layers of transformers' hybrids, with random weights, against `moe` with theirs.

Shape suffixes: b batch, l length, d width.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from contract.building import inputs, layer_of
from torch import Tensor, nn

from archsearch.mixers.base import Surroundings
from archsearch.mixers.moe import MoeMixer, balance_loss

transformers = pytest.importorskip("transformers")

WIDTH = 24
SOFTMAX: dict[str, Any] = {"experts": 6, "top_k": 3}
SIGMOID: dict[str, Any] = {"experts": 8, "top_k": 3, "router": "sigmoid", "selection_bias": True}
GROUPED: dict[str, Any] = SIGMOID | {"groups": 4, "top_groups": 2, "routed_scale": 2.5, "shared": 20}
GATED: dict[str, Any] = SOFTMAX | {"shared": 20, "shared_gate": True}

LOCAL = {"intermediate_size": 10, "num_local_experts": 6, "num_experts_per_tok": 3}
GRANITE = LOCAL | {"mamba_n_heads": 8}
JAMBA = LOCAL | {"num_experts": 6}
QWEN = {
    "moe_intermediate_size": 10,
    "shared_expert_intermediate_size": 20,
    "num_experts": 6,
    "num_experts_per_tok": 3,
}
LFM2 = {
    "moe_intermediate_size": 10,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "routed_scaling_factor": 1.5,
}
DEEPSEEK = {
    "moe_intermediate_size": 10,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 2,
    "routed_scaling_factor": 2.5,
}
NEMOTRON = DEEPSEEK | {"moe_shared_expert_intermediate_size": 20}
LATENT = {"moe_latent_size": 14, "mlp_bias": True}

CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "jamba": ("JambaSparseMoeBlock", "JambaConfig", JAMBA, SOFTMAX | {"renormalise": False}),
    "granitemoehybrid": ("GraniteMoeHybridMoE", "GraniteMoeHybridConfig", GRANITE, SOFTMAX),
    "qwen3_next": ("Qwen3NextSparseMoeBlock", "Qwen3NextConfig", QWEN, GATED),
    "qwen3_next as is": (
        "Qwen3NextSparseMoeBlock",
        "Qwen3NextConfig",
        QWEN | {"norm_topk_prob": False},
        GATED | {"renormalise": False},
    ),
    "qwen3_5_moe": ("Qwen3_5MoeSparseMoeBlock", "Qwen3_5MoeTextConfig", QWEN, GATED),
    "minimax": ("MiniMaxSparseMoeBlock", "MiniMaxConfig", LOCAL, SOFTMAX),
    "lfm2_moe": (
        "Lfm2MoeSparseMoeBlock",
        "Lfm2MoeConfig",
        LFM2,
        SIGMOID | {"renormalise_eps": 1e-6, "routed_scale": 1.5},
    ),
    "nemotron_h": ("NemotronHMoE", "NemotronHConfig", NEMOTRON, GROUPED | {"activation": "relu2"}),
    "nemotron_h latent": (
        "NemotronHMoE",
        "NemotronHConfig",
        NEMOTRON | LATENT | {"norm_topk_prob": False},
        GROUPED | {"activation": "relu2", "latent": 14, "bias": True, "renormalise": False},
    ),
    "kimi_linear": ("KimiLinearMoE", "KimiLinearConfig", DEEPSEEK, GROUPED),
    "bailing_hybrid": ("BailingHybridMoE", "BailingHybridConfig", DEEPSEEK, GROUPED),
}
"""Model -> its block and configuration, the configuration's fields, and those of `moe` that say the same."""

NAMES = {
    "gate.weight": "router.weight",
    "gate.e_score_correction_bias": "router.selection_bias",
    "expert_bias": "router.selection_bias",
    "experts.gate_up_proj": "experts.up_proj",
    "shared_expert_gate.weight": "shared_gate.weight",
    "shared_experts.up_proj.weight": "shared.up_proj.weight",
    "shared_experts.up_proj.bias": "shared.up_proj.bias",
    "shared_experts.down_proj.weight": "shared.down_proj.weight",
    "shared_experts.down_proj.bias": "shared.down_proj.bias",
    "shared_expert.up_proj.weight": "shared.up_proj.weight",
    "shared_expert.down_proj.weight": "shared.down_proj.weight",
    "fc1_latent_proj.weight": "latent_down.weight",
    "fc1_latent_proj.bias": "latent_down.bias",
    "fc2_latent_proj.weight": "latent_up.weight",
    "fc2_latent_proj.bias": "latent_up.bias",
}
"""Names that differ. Shared experts have the gate's rows apart."""


def theirs(case: str) -> nn.Module:
    """The block, every parameter and buffer drawn, wide enough for routers to have preferences."""
    block, config_name, fields, _ = CASES[case]
    code = import_module(f"transformers.models.{case.split()[0]}.modeling_{case.split()[0]}")
    config = getattr(code, config_name)(hidden_size=WIDTH, **fields)
    config._experts_implementation = "eager"
    made: nn.Module = getattr(code, block)(config).float()
    generator = torch.Generator().manual_seed(0)
    for tensor in made.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return made.eval()


def ours(case: str, weights: dict[str, Tensor]) -> MoeMixer:
    layer = layer_of("moe", CASES[case][3] | {"hidden": 10}, WIDTH)
    mixer = MoeMixer(layer, Surroundings(WIDTH))
    named = {NAMES.get(name, name): tensor for name, tensor in weights.items()}
    for name in [name for name in named if name.endswith("gate_proj.weight")]:
        fused = "shared.up_proj.weight"
        named[fused] = torch.cat([named.pop(name), named[fused]])
    mixer.load_state_dict(named)
    return mixer


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_theirs(case: str) -> None:
    block = theirs(case)
    mixer = ours(case, block.state_dict())
    x_bld = inputs(2, 40, WIDTH).float()
    results = []
    for module in (mixer, block):
        leaf_bld = x_bld.clone().requires_grad_()
        y_bld = module(leaf_bld)
        y_bld = y_bld[0] if isinstance(y_bld, tuple) else y_bld
        router = dict(module.named_parameters()).get("router.weight", None)
        router = module.get_parameter("gate.weight") if router is None else router
        results.append([y_bld, *torch.autograd.grad(y_bld.sin().sum(), [leaf_bld, router])])
    for found, truth in zip(*results, strict=True):
        assert (found - truth).abs().max() <= 2e-5 * truth.abs().max()


@pytest.mark.parametrize("masked", [False, True])
def test_the_balance_loss_is_theirs(masked: bool) -> None:
    code: Any = import_module("transformers.models.jamba.modeling_jamba")
    logits_ne = inputs(1, 60, 6)[0].float()
    keep_n = torch.arange(60) % 20 >= 7 if masked else torch.ones(60, dtype=torch.bool)
    truth = code.load_balancing_loss_func((logits_ne,), 6, 2, keep_n.view(3, 20) if masked else None)
    scores_ne = logits_ne[keep_n].softmax(-1)
    torch.testing.assert_close(balance_loss(scores_ne, scores_ne.topk(2).indices), truth)
