"""Configs of published models give the specs that were written of these models by hand."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from archsearch.interop.importing import plan
from archsearch.spec import SpecError, load_spec

DEFAULTS = {
    "bailing_hybrid": "ling_3_0_flash",
    "gemma2": "gemma_2_2b",
    "jamba": "jamba_v0_1",
    "lfm3": "lfm3_1_7b",
    "zamba": "zamba_7b",
}
"""transformers' model types whose default config is a published model's, and its spec."""

FULL = [4, 8, 12, 16, 20, 24, 27]
KIMI_LINEAR: dict[str, Any] = {
    "first_k_dense_replace": 1,
    "head_dim": 72,
    "linear_attn_config": {
        "full_attn_layers": FULL,
        "kda_layers": [i for i in range(1, 28) if i not in FULL],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
    "mla_use_nope": True,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_expert_group": 1,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 1,
    "rope_theta": 10000.0,
    "topk_method": "noaux_tc",
    "use_grouped_topk": True,
}
"""Fields of the checkpoint's config.json that transformers' class does not have, or names otherwise."""


@pytest.mark.parametrize(("model_type", "name"), DEFAULTS.items(), ids=DEFAULTS)
def test_default(model_type: str, name: str) -> None:
    spec = plan(transformers.AutoConfig.for_model(model_type)).spec()
    assert spec.hash == load_spec(f"specs/published/{name}.yaml").hash


def test_kimi_linear_as_its_checkpoint_says_it() -> None:
    spec = plan(transformers.KimiLinearConfig(**KIMI_LINEAR)).spec()
    assert spec.hash == load_spec("specs/published/kimi_linear_48b_a3b.yaml").hash


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mla_use_nope", False),
        ("moe_router_activation_func", "softmax"),
        ("linear_attn_config", KIMI_LINEAR["linear_attn_config"] | {"gate_bound": 5}),
    ],
)
def test_a_field_that_would_change_kimi_linear(field: str, value: Any) -> None:
    with pytest.raises(SpecError, match=f"^kimi_linear config: {field}: "):
        plan(transformers.KimiLinearConfig(**KIMI_LINEAR | {field: value}))
