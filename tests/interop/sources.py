"""Tiny transformers models with random shapes and weights, a family at a time."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

transformers.logging.set_verbosity_error()

VOCAB = 96
Draw = random.Random
Fields = dict[str, Any]

FAMILIES: dict[str, Callable[[Draw], Fields]] = {}
"""Family -> fields of a random config; `config` names its class."""


def family(make: Callable[[Draw], Fields]) -> Callable[[Draw], Fields]:
    FAMILIES[make.__name__] = make
    return make


def source(name: str, seed: int) -> Any:
    """A model of the family, every parameter of it perturbed."""
    fields = FAMILIES[name](random.Random(f"{name} {seed}"))
    return build(visible(fields, seed) | fields, seed)


def visible(fields: Fields, seed: int) -> Fields:
    """Epsilons and rotary bases large or small enough to show, where the family has them."""
    known = {field.name for field in dataclasses.fields(getattr(transformers, fields["config"]))}
    found: Fields = {}
    for name in known & {"rms_norm_eps", "layer_norm_epsilon", "norm_eps"}:
        found[name] = (1e-2, 1e-5)[seed % 2]
    if "rope_parameters" in known - fields.keys():
        found["rope_theta"] = (500.0, 10000.0)[seed % 2]
    return found


def build(fields: Fields, seed: int = 0) -> Any:
    """The causal language model of a config's fields; `config` names the config's class."""
    torch.manual_seed(seed)
    given = {"initializer_range": 0.06, "pad_token_id": 0, "eos_token_id": None, **fields}
    config = getattr(transformers, given.pop("config"))(**given)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    return perturb(model, torch.Generator().manual_seed(seed))


def perturb(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """No norm, bias or scale is left at its neutral value."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if isinstance(tensor, nn.Parameter) or "bias" in name:
                size = 0.3 if tensor.ndim == 1 else 0.03
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=size)
            if name.endswith("forget_gate.dt_bias"):
                # transformers takes log(1 + e^x) of it as it stands, which keeps few digits of a small e^x.
                tensor.add_(3)
    return model


def lively(model: Any) -> Any:
    """The model with weights that say more than the embeddings, which would repeat one token for ever."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "A_log" not in name and "conv" not in name:
                weight.mul_(0.3 if "embed" in name else 3.0)
    return model


def logits(model: Any, ids_bl: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids_bl, use_cache=False).logits


def self_noise(model: Any, ids_bl: Tensor, draws: int = 8) -> tuple[float, float]:
    """How far the logits move when every weight moves by one unit in the last place.

    Returns the largest difference in any of the draws, and the root mean square over all of them.
    """
    before, kept = logits(model, ids_bl), {k: v.clone() for k, v in model.state_dict().items()}
    moved = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                up = torch.rand(weight.shape, generator=generator) < 0.5
                weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))
        moved.append(logits(model, ids_bl) - before)
        model.load_state_dict(kept)
    return sizes(torch.stack(moved))


def sizes(difference: Tensor) -> tuple[float, float]:
    """Largest and root mean square."""
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


def stack(draw: Draw, low: int = 3, high: int = 5) -> Fields:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "num_hidden_layers": draw.randint(low, high),
        "tie_word_embeddings": draw.random() < 0.5,
    }


def heads(draw: Draw) -> Fields:
    """Query and key/value heads that divide 48, odd ones too."""
    heads, kv = draw.choice([(3, 1), (3, 3), (6, 2), (6, 3), (4, 2)])
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": draw.choice([40, 72]),
    }


def types(draw: Draw, layers: int, words: tuple[str, str]) -> list[str]:
    """One of the two words a layer, each at least once."""
    found = [draw.choice(words) for _ in range(layers)]
    found[draw.randrange(layers - 1)] = words[0]
    return [*found[:-1], words[1]] if words[1] not in found else found


def coin(draw: Draw) -> bool:
    return draw.random() < 0.5


@family
def mamba2(draw: Draw) -> Fields:
    heads, head_dim = draw.choice([(6, 16), (12, 8), (3, 32)])
    return stack(draw) | {
        "config": "Mamba2Config",
        "num_heads": heads,
        "head_dim": head_dim,
        "state_size": draw.choice([8, 12]),
        "n_groups": draw.choice([1, 3]),
        "conv_kernel": draw.choice([3, 4]),
        "use_bias": coin(draw),
        "use_conv_bias": coin(draw),
    }


@family
def llama(draw: Draw) -> Fields:
    return (
        stack(draw)
        | heads(draw)
        | {
            "config": "LlamaConfig",
            "attention_bias": coin(draw),
            "mlp_bias": coin(draw),
        }
    )


@family
def bamba(draw: Draw) -> Fields:
    fields = stack(draw) | heads(draw)
    return (
        fields
        | ssm(draw)
        | {
            "config": "BambaConfig",
            "attn_layer_indices": sorted(draw.sample(range(fields["num_hidden_layers"]), 2)),
            "attention_bias": coin(draw),
            "mlp_bias": coin(draw),
        }
    )


def ssm(draw: Draw) -> Fields:
    """Mamba-2 as Bamba's cousins name it."""
    return {
        "mamba_n_heads": draw.choice([6, 12, 3]),
        "mamba_d_state": draw.choice([8, 12]),
        "mamba_n_groups": draw.choice([1, 3]),
        "mamba_d_conv": draw.choice([3, 4]),
        "mamba_conv_bias": coin(draw),
        "mamba_proj_bias": coin(draw),
    }


@family
def mamba(draw: Draw) -> Fields:
    return stack(draw) | {
        "config": "MambaConfig",
        "state_size": draw.choice([5, 8]),
        "expand": draw.choice([1, 2]),
        "time_step_rank": draw.choice(["auto", 5]),
        "conv_kernel": draw.choice([3, 4]),
        "use_bias": coin(draw),
        "use_conv_bias": coin(draw),
    }


@family
def falcon_mamba(draw: Draw) -> Fields:
    return mamba(draw) | {"config": "FalconMambaConfig", "mixer_rms_eps": draw.choice([1e-6, 1e-3])}


@family
def qwen3(draw: Draw) -> Fields:
    fields = stack(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("full_attention", "sliding_attention"))
    return (
        fields
        | heads(draw)
        | {
            "config": "Qwen3Config",
            "head_dim": draw.choice([8, 20]),
            "attention_bias": coin(draw),
            "use_sliding_window": True,
            "sliding_window": draw.choice([7, 16]),
            "layer_types": kinds,
        }
    )


@family
def gemma2(draw: Draw) -> Fields:
    return (
        stack(draw)
        | heads(draw)
        | {
            "config": "Gemma2Config",
            "head_dim": draw.choice([8, 20]),
            "query_pre_attn_scalar": draw.choice([8, 24]),
            "sliding_window": draw.choice([7, 16]),
            "attention_bias": coin(draw),
            "attn_logit_softcapping": draw.choice([None, 1.5]),
            "final_logit_softcapping": draw.choice([None, 2.0]),
        }
    )


@family
def granite(draw: Draw) -> Fields:
    fields = stack(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("linear_attention", "full_attention"))
    return (
        fields
        | heads(draw)
        | ssm(draw)
        | {
            "config": "GraniteMoeHybridConfig",
            "layer_types": kinds,
            "shared_intermediate_size": draw.choice([40, 72]),
            "num_local_experts": draw.choice([0, 5]),
            "position_embedding_type": draw.choice([None, "rope"]),
            "attention_bias": coin(draw),
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.4,
            "logits_scaling": 1.7,
        }
    )


@family
def lfm2(draw: Draw) -> Fields:
    fields = stack(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("conv", "full_attention"))
    return (
        fields
        | heads(draw)
        | {
            "config": "Lfm2Config",
            "layer_types": kinds,
            "conv_bias": coin(draw),
            "conv_L_cache": draw.choice([3, 4]),
            "block_auto_adjust_ff_dim": coin(draw),
            "block_ffn_dim_multiplier": draw.choice([1.0, 1.3]),
            "block_multiple_of": 8,
        }
    )


@family
def falcon_h1(draw: Draw) -> Fields:
    """Not with a norm before the gate and groups at once: transformers cannot decode that."""
    return (
        stack(draw)
        | heads(draw)
        | ssm(draw)
        | {
            "config": "FalconH1Config",
            "mamba_d_ssm": draw.choice([48, 96]),
            "mamba_proj_bias": False,
            "mamba_rms_norm": coin(draw),
            "mamba_norm_before_gate": coin(draw),
            "attention_bias": coin(draw),
            "mlp_bias": coin(draw),
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.7,
            "mlp_multipliers": [0.8, 1.3],
            "key_multiplier": 0.6,
            "attention_in_multiplier": 1.4,
            "attention_out_multiplier": 0.9,
            "ssm_multipliers": [0.7, 1.2, 0.8, 1.1, 0.6],
            "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.8,
        }
    )


@family
def nemotron_h(draw: Draw) -> Fields:
    kinds = ["linear_attention", "full_attention", "mlp", "linear_attention", "moe"]
    draw.shuffle(kinds)
    fields = stack(draw) | heads(draw)
    del fields["num_hidden_layers"]
    return fields | {
        "config": "NemotronHConfig",
        "layers_block_type": kinds,
        "head_dim": draw.choice([8, 20]),
        "mamba_num_heads": draw.choice([3, 6]),
        "mamba_head_dim": 16,
        "ssm_state_size": draw.choice([8, 12]),
        "n_groups": draw.choice([1, 3]),
        "conv_kernel": draw.choice([3, 4]),
        "use_conv_bias": coin(draw),
        "use_bias": coin(draw),
        "mlp_bias": coin(draw),
        "n_routed_experts": 6,
        "n_group": draw.choice([1, 3]),
        "topk_group": 1,
        "norm_topk_prob": coin(draw),
        "routed_scaling_factor": 1.7,
        "moe_intermediate_size": 40,
        "moe_shared_expert_intermediate_size": 24,
        "moe_latent_size": draw.choice([None, 20]),
    }


@family
def qwen3_5(draw: Draw) -> Fields:
    fields = stack(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("linear_attention", "full_attention"))
    return (
        fields
        | heads(draw)
        | delta(draw)
        | {
            "config": "Qwen3_5TextConfig",
            "layer_types": kinds,
            "head_dim": draw.choice([8, 16]),
            "attention_bias": coin(draw),
        }
    )


def delta(draw: Draw) -> Fields:
    """Heads of a gated DeltaNet: keys, and one or more values for each."""
    keys = draw.choice([2, 3])
    return {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": keys * draw.choice([1, 2]),
        "linear_key_head_dim": draw.choice([8, 12]),
        "linear_value_head_dim": draw.choice([8, 20]),
        "linear_conv_kernel_dim": draw.choice([3, 4]),
    }


@family
def olmo_hybrid(draw: Draw) -> Fields:
    fields = stack(draw)
    kinds = types(draw, fields["num_hidden_layers"], ("linear_attention", "full_attention"))
    return (
        fields
        | heads(draw)
        | delta(draw)
        | draw.choice([{}, {"rope_parameters": {"rope_type": "default", "rope_theta": None}}])
        | {
            "config": "OlmoHybridConfig",
            "layer_types": kinds,
            "attention_bias": coin(draw),
            "linear_allow_neg_eigval": coin(draw),
        }
    )


@family
def recurrent_gemma(draw: Draw) -> Fields:
    heads, kv = draw.choice([(3, 1), (6, 2), (3, 3)])
    return stack(draw) | {
        "config": "RecurrentGemmaConfig",
        "num_hidden_layers": draw.randint(3, 5),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": draw.choice([80, 144]),
        "attention_window_size": draw.choice([7, 16]),
        "attention_bias": coin(draw),
        "conv1d_width": draw.choice([3, 4]),
        "logits_soft_cap": draw.choice([2.0, 30.0]),
    }


@family
def lfm2_moe(draw: Draw) -> Fields:
    fields = lfm2(draw)
    for name in ("block_auto_adjust_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of"):
        del fields[name]
    return (
        fields
        | experts(draw)
        | {
            "config": "Lfm2MoeConfig",
            "num_dense_layers": draw.choice([0, 1]),
            "use_expert_bias": coin(draw),
            "norm_topk_prob": coin(draw),
            "routed_scaling_factor": 1.7,
        }
    )


def experts(draw: Draw) -> Fields:
    return {
        "num_experts": draw.choice([4, 5]),
        "num_experts_per_tok": draw.choice([1, 2]),
        "moe_intermediate_size": draw.choice([16, 24]),
    }


@family
def qwen3_5_moe(draw: Draw) -> Fields:
    fields = qwen3_5(draw)
    del fields["intermediate_size"]
    return (
        fields
        | experts(draw)
        | {
            "config": "Qwen3_5MoeTextConfig",
            "shared_expert_intermediate_size": draw.choice([16, 24]),
        }
    )


@family
def qwen3_next(draw: Draw) -> Fields:
    return qwen3_5_moe(draw) | {
        "config": "Qwen3NextConfig",
        "intermediate_size": draw.choice([40, 72]),
        "norm_topk_prob": coin(draw),
        "mlp_only_layers": draw.choice([[], [1]]),
        "decoder_sparse_step": draw.choice([1, 2]),
    }


@family
def jamba(draw: Draw) -> Fields:
    return (
        stack(draw)
        | heads(draw)
        | {
            "config": "JambaConfig",
            "attn_layer_period": 3,
            "attn_layer_offset": draw.choice([0, 1, 2]),
            "expert_layer_period": 2,
            "expert_layer_offset": draw.choice([0, 1]),
            "num_experts": draw.choice([1, 4]),
            "mamba_d_state": draw.choice([5, 8]),
            "mamba_d_conv": draw.choice([3, 4]),
            "mamba_dt_rank": draw.choice(["auto", 5]),
            "mamba_expand": draw.choice([1, 2]),
            "mamba_conv_bias": coin(draw),
            "mamba_proj_bias": coin(draw),
        }
    )


SCALINGS: dict[str, Fields] = {
    "linear": {"factor": 3.0},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "yarn_given": {"factor": 4.0, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.2},
}
"""Stretched rotations: fields of `rope_parameters` beside its type."""

STEPS: dict[str, Fields] = {
    "mamba2": {"time_step_limit": (0.5, 1.1)},
    "bamba": {"time_step_limit": (0.5, 1.1)},
    "granite": {"time_step_limit": (0.5, 1.1)},
    "falcon_h1": {"time_step_limit": (0.5, 1.1)},
    "nemotron_h": {"time_step_min": 0.9, "time_step_max": 1.0},
}
"""Step sizes that are clamped. transformers does so for whole sequences, but not when it decodes."""


def variant(name: str) -> Any:
    """A model of `SCALINGS` or `STEPS`."""
    if name in SCALINGS:
        scaled = {"rope_type": name.split("_")[0], "rope_theta": 500.0, **SCALINGS[name]}
        if scaled["rope_type"] != "linear":
            scaled["original_max_position_embeddings"] = 16
        return build(llama(random.Random(name)) | {"rope_parameters": scaled})
    return build(FAMILIES[name](random.Random(name)) | STEPS[name])
