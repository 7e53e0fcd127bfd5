"""The attention layer against modules of transformers with the same weights.

Shape suffixes: b batch, l position, d d_model.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from contract.building import inputs, relative, shaken
from torch import Tensor

from archsearch.mixers.attention import AttentionMixer
from archsearch.mixers.base import Surroundings
from archsearch.spec.layers import Attention

LENGTH = 12
COMMON: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 8}
YARN = {"factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}

GPT_OSS = (
    "gpt_oss",
    "GptOss",
    {
        "sliding_window": 5,
        "layer_types": ["sliding_attention"],
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 150_000.0,
            "original_max_position_embeddings": 64,
            **YARN,
        },
        "max_position_embeddings": 512,
    },
    {
        "window": 5,
        "sinks": True,
        "bias": True,
        "output_bias": True,
        "rope": {"theta": 150_000.0, "scaling": {"kind": "yarn", "original_context": 64, **YARN}},
    },
)
GEMMA2 = (
    "gemma2",
    "Gemma2",
    {
        "query_pre_attn_scalar": 4,
        "attn_logit_softcapping": 1.5,
        "sliding_window": 4,
        "layer_types": ["sliding_attention"],
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
    },
    {"window": 4, "softcap": 1.5, "scale": 0.5, "rope": {"scaling": {"kind": "linear", "factor": 2.0}}},
)
QWEN3_NEXT = (
    "qwen3_next",
    "Qwen3Next",
    {
        "attention_bias": False,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 0.25,
        },
    },
    {"gate": "channel", "qk_norm": "head", "rope": {"fraction": 0.25}},
)


def rows(weights: dict[str, Tensor], last: str, gated: bool) -> Tensor:
    """Rows of q, k, v and gate; transformers has each head's gate after its query."""
    q, k, v = (weights[f"{name}_proj.{last}"] for name in "qkv")
    if not gated:
        return torch.cat([q, k, v])
    q, gate = (t.flatten(0, 1) for t in q.unflatten(0, (4, 2, 8)).unbind(1))
    return torch.cat([q, k, v, gate])


@pytest.mark.parametrize(
    ("package", "name", "given", "fields"),
    [GPT_OSS, GEMMA2, QWEN3_NEXT],
    ids=["gpt_oss", "gemma2", "qwen3_next"],
)
def test_is_the_module_that_transformers_has(
    package: str, name: str, given: dict[str, Any], fields: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    theirs = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
    config_of = importlib.import_module(f"transformers.models.{package}.configuration_{package}")
    config = getattr(config_of, f"{name}Config")(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=1,
        attn_implementation="eager",
        **given,
    )
    attention: Any = getattr(theirs, f"{name}Attention")(config, 0)
    with torch.no_grad():
        for i, parameter in enumerate(attention.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.2)
    attention = attention.double().eval()
    layer = Attention.model_validate(COMMON | fields).resolve(32)
    mixer = AttentionMixer(layer, Surroundings(32, 1e-6, unit_offset=package == "qwen3_next"))
    weights = attention.state_dict()
    ours: dict[str, Any] = {"qkv_proj.weight": rows(weights, "weight", layer.gate is not None)}
    if layer.bias:
        ours["qkv_proj.bias"] = rows(weights, "bias", layer.gate is not None)
    for key, value in weights.items():
        if not key.startswith(("q_proj", "k_proj", "v_proj")):
            ours[key.replace("o_proj", "out_proj")] = value
    shaken(mixer).load_state_dict(ours)

    x_bld = inputs(2, LENGTH, 32)
    age = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    hidden = (age < 0) | (age >= (layer.window or LENGTH))
    mask = torch.zeros(LENGTH, LENGTH, dtype=torch.float64).masked_fill(hidden, -torch.inf)[None, None]
    with torch.no_grad():
        places = getattr(theirs, f"{name}RotaryEmbedding")(config)(x_bld, torch.arange(LENGTH)[None])
        truth = attention(x_bld, position_embeddings=places, attention_mask=mask)[0]
        # Their softmax is in float32, and so are their angles.
        assert relative(mixer(x_bld), truth) <= 2e-6
