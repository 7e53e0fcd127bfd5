"""Tiny transformers models with random shapes and weights, a family at a time."""

from __future__ import annotations

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
    return build(FAMILIES[name](random.Random(f"{name} {seed}")), seed)


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
        for parameter in model.parameters():
            size = 0.3 if parameter.ndim == 1 else 0.03
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model


def logits(model: Any, ids_bl: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids_bl, use_cache=False).logits


def self_noise(model: Any, ids_bl: Tensor, draws: int = 4) -> float:
    """How far the logits move when every weight moves by one unit in the last place; a typical draw."""
    before, kept = logits(model, ids_bl), {k: v.clone() for k, v in model.state_dict().items()}
    moved = []
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                up = torch.rand(weight.shape, generator=generator) < 0.5
                weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))
        moved.append((logits(model, ids_bl) - before).abs().max().item())
        model.load_state_dict(kept)
    return sorted(moved)[draws // 2]


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
            "rope_theta": draw.choice([500.0, 10000.0]),
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
