"""Modules to hold the contracts against: every listed mixer and merge, in every interesting variant.

Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archsearch.compiler import compile_model
from archsearch.mixers.base import Call, Mixer, Surroundings
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec
from archsearch.spec.entries import layer_kinds
from archsearch.spec.merges import MERGES

D_MODEL = 64
"""The width at which a bare layer of every kind is legal."""

LENGTHS = (1, 2, 3, 63, 64, 65, 100, 129)
"""Around the scan's chunk of 64, odd, and the shortest."""

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "attention": [
        {},
        {"heads": 4, "kv_heads": 2},
        {"heads": 4, "kv_heads": 1, "head_dim": 6, "rope": None},
        {"heads": 2, "rope": {"fraction": 0.25, "theta": 500.0}},
        {"heads": 4, "window": 1},
        {"heads": 4, "window": 5},
        {"heads": 2, "kv_heads": 1, "window": 64, "conv": 4},
        {"heads": 4, "window": 1000},
        {"heads": 4, "kv_heads": 2, "qk_norm": "head"},
        {"heads": 4, "kv_heads": 2, "qk_norm": "full", "bias": True, "output_bias": True},
        {"heads": 4, "conv": 2, "scale": 0.7},
        {
            "heads": 4,
            "kv_heads": 2,
            "head_dim": 6,
            "value_dim": 10,
            "gate": "channel",
            "conv": 3,
            "window": 7,
        },
        {"heads": 2, "value_dim": 5, "sinks": True, "qk_norm": "full"},
        {"heads": 4, "kv_heads": 2, "gate": "head", "sinks": True},
        {"heads": 4, "gate": "channel", "bias": True, "window": 5, "sinks": True, "conv": 3},
        {"heads": 4, "kv_heads": 1, "softcap": 0.5},
        {"heads": 2, "softcap": 2.0, "sinks": True, "window": 7},
        {"heads": 4, "rope": {"interleaved": True, "fraction": 0.5}},
        {
            "heads": 4,
            "rope": {"theta": 50.0, "scaling": {"kind": "yarn", "factor": 4.0, "original_context": 32}},
        },
    ],
    "gated_conv": [
        {},
        {"width": 24, "d_conv": 2},
        {"width": 96, "d_conv": 5, "bias": True},
        {"d_conv": 4, "bias": True, "conv_bias": True},
    ],
    "gated_memory": [{"width": 24}, {"width": 130}],
    "kda": [
        {},
        {"heads": 3, "head_dim": 5, "d_conv": 2, "beta_scale": 2, "norm_eps": 1e-3},
        {"heads": 2, "head_dim": 16, "gate_rank": 3, "decay_bound": 5.0, "d_conv": 7},
        {"heads": 2, "head_dim": 8, "gate_rank": "full", "beta_scale": 2, "A_init": [0, 2]},
        {"heads": 2, "head_dim": 16, "A_init": [8, 16], "dt_min": 1.0, "dt_max": 30.0},
    ],
    "lightning": [
        {},
        {"heads": 8},
        {"heads": 3, "head_dim": 5, "decay_scale": 0.25, "activation": "gelu", "norm_eps": 1e-3},
        {"heads": 2, "head_dim": 16, "decay_scale": 40.0, "activation": "none"},
        {"heads": 4, "activation": "relu"},
    ],
    "mamba1": [
        {},
        {"heads": 2},
        {"heads": 4, "expand": 0.5, "d_state": 3, "dt_rank": 2, "inner_norm": "weighted", "bias": True},
        {"d_state": 1, "dt_rank": 1, "d_conv": 2},
        {"expand": 0.5, "d_state": 3, "inner_norm": "weighted"},
        {"expand": 1, "d_state": 5, "inner_norm": "rms", "inner_norm_eps": 0.1, "dt_rank": 7},
        {"expand": 1.5, "d_conv": 7, "conv_bias": False, "bias": True, "dt_init": "constant"},
        {"dt_min": 1.0, "dt_max": 30.0, "d_state": 4, "inner_norm": "weighted", "bias": True},
    ],
    "gated_deltanet": [
        {},
        {"key_heads": 2, "key_dim": 8, "value_dim": 5, "beta_scale": 2},
        {"key_heads": 3, "value_heads": 3, "key_dim": 4, "value_dim": 8, "d_conv": 2, "norm_eps": 1e-3},
        {"key_heads": 1, "value_heads": 4, "key_dim": 8, "value_dim": 6, "gate": False, "d_conv": 7},
        {"key_heads": 2, "key_dim": 16, "value_dim": 16, "A_init": [8, 16], "dt_min": 1.0, "dt_max": 30.0},
    ],
    "mamba2": [
        {},
        {"heads": 3, "head_dim": 8, "d_state": 4},
        {"head_dim": 8, "groups": 2, "d_state": 3, "multipliers": [0.5, 2, 0.3, 1.5, 3], "bias": True},
        {"head_dim": 16, "groups": 2, "norm_groups": 4, "norm_eps": 0.1, "d_state": 4},
        {"head_dim": 16, "d_state": 5},
        {"head_dim": 8, "groups": 4, "d_state": 3},
        {"head_dim": 8, "groups": 16, "d_state": 1},
        {"head_dim": 1, "expand": 0.5, "d_state": 2, "d_conv": 2},
        {"head_dim": 16, "d_conv": 7, "conv_bias": False, "bias": True},
        {"head_dim": 32, "groups": 2, "gated_norm": "before", "d_state": 4},
        {"head_dim": 32, "gated_norm": "none", "d_state": 4},
        {"head_dim": 32, "dt_limit": [0.01, 0.05], "d_state": 4},
        {"head_dim": 64, "dt_min": 1.0, "dt_max": 30.0, "A_init": [8, 16], "d_state": 4},
    ],
    "mla": [
        {},
        {"kv_rank": 12, "nope_dim": 8},
        {"heads": 3, "q_rank": 10, "kv_rank": 7, "nope_dim": 4, "rope_dim": 2, "value_dim": 9, "bias": True},
        {"heads": 2, "kv_rank": 8, "nope_dim": 5, "rope_dim": 3, "rope": None, "gate": "head"},
        {
            "heads": 4,
            "kv_rank": 16,
            "nope_dim": 6,
            "rope_dim": 8,
            "rope": {"interleaved": True},
            "gate": "channel",
            "norm_eps": 1e-6,
            "scale": 0.5,
        },
    ],
    "mlp": [
        {},
        {"activation": "geglu", "bias": True},
        {"activation": "gelu", "hidden": 7},
        {"activation": "relu2", "expand": 0.5},
        {"activation": "silu", "bias": True},
        {"activation": "geglu_tanh", "gate_scale": 0.5},
        {"activation": "gelu_tanh", "hidden": 9, "gate_scale": 3.0},
        {"activation": "reglu"},
        {"activation": "relu"},
    ],
    "moe": [
        {},
        {"experts": 4, "top_k": 1, "activation": "relu2", "balance": 0.5},
        {"experts": 6, "top_k": 3, "renormalise": False, "hidden": 5},
        {"experts": 3, "top_k": 3, "hidden": 8, "activation": "gelu", "renormalise_eps": 0.1},
        {"experts": 4, "hidden": 6, "shared": 9, "shared_gate": True, "bias": True},
        {"router": "sigmoid", "groups": 4, "top_groups": 2, "routed_scale": 2.5, "selection_bias": True},
        {"router": "sigmoid", "groups": 4, "top_groups": 1, "shared": 8, "latent": 12, "bias": True},
        {"experts": 40, "top_k": 4, "hidden": 3, "latent": 96, "groups": 2, "top_groups": 1},
    ],
    "rglru": [
        {},
        {"heads": 4},
        {"width": 96, "heads": 3, "d_conv": 2},
        {"width": 24, "heads": 24, "d_conv": 7},
        {"heads": 2, "a_init": [0.001, 0.01]},
        {"heads": 2, "a_init": [0.999, 0.9999]},
    ],
}
"""Layer kind -> fields to hold the contracts with; a listed kind that is not here is held bare."""

TWO = ["mamba2", "attention"]
THREE = ["mamba2", "attention", "mlp"]
SHARED = [
    {"mamba2": {"expand": 1, "head_dim": 16, "d_state": 4}},
    {"attention": {"heads": 8, "kv_heads": 2, "head_dim": 8}},
]
NESTED = ["attention", {"parallel": {"branches": ["mlp", ["mamba2", "mlp"]], "merge": "sum"}}]
PREPARED: dict[str, Any] = {"norm": True, "scale": "vector"}

MERGE_VARIANTS: dict[str, list[tuple[dict[str, Any], list[Any]]]] = {
    "sum": [({}, THREE), (PREPARED, TWO), ({"projection": "shared", "scale": "scalar"}, SHARED)],
    "mean": [({}, THREE), ({"norm": True}, NESTED), ({"projection": "shared"} | PREPARED, SHARED)],
    "subtract": [({}, TWO), ({"projection": "shared"} | PREPARED, SHARED)],
    "concat": [({}, THREE), (PREPARED, NESTED), ({"projection": "shared"} | PREPARED, [*SHARED, "mlp"])],
    "gate": [
        ({}, TWO),
        ({"by": "vector"}, THREE),
        ({"by": "token"} | PREPARED, NESTED),
        ({"by": "vector", "projection": "shared"}, SHARED),
        ({"by": "token", "projection": "shared"}, SHARED),
    ],
    "normed_mean": [({}, THREE), ({"heads": 4, "projection": "shared"}, SHARED)],
    "cross_attention": [
        ({}, TWO),
        ({"query": "ssm", "heads": 4, "kv_heads": 2}, TWO),
        ({"query": "attention", "heads": 2, "window": 5, "residual": False}, TWO),
        ({"query": 1, "heads": 4, "kv_heads": 1, "norm": False, "scale": "scalar"}, NESTED),
    ],
}
"""Merge kind -> its fields and the branches; a listed merge that is not here is held bare, on two."""

MIXER_CASES = [(kind, fields) for kind in MIXERS for fields in VARIANTS.get(kind, [{}])]
MERGE_CASES = [
    (kind, fields, branches) for kind in MERGES for fields, branches in MERGE_VARIANTS.get(kind, [({}, TWO)])
]


def label(value: Any) -> str:
    """A readable test id."""
    if isinstance(value, dict):
        return ",".join(f"{key}={label(item)}" for key, item in value.items()) or "bare"
    if isinstance(value, list):
        return "+".join(label(item) for item in value)
    return str(value)


def layer_of(kind: str, fields: dict[str, Any], d_model: int = D_MODEL) -> Any:
    """The resolved layer."""
    return layer_kinds()[kind].model_validate(fields).resolve(d_model)


def shaken(module: nn.Module, seed: int = 1) -> nn.Module:
    """Every parameter moved off its initial value, in float64: ones and zeros hide what they multiply."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return module


def mixer_of(kind: str, fields: dict[str, Any], project: bool = True, d_model: int = D_MODEL) -> Any:
    mixer = MIXERS[kind](layer_of(kind, fields, d_model), Surroundings(d_model), project)
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    return shaken(Remembering(mixer) if kind == "gated_memory" else mixer)


class Remembering(nn.Module):
    """A gated memory unit whose memory is some function of its own input, as if another layer had told it."""

    def __init__(self, mixer: Mixer):
        super().__init__()
        self.mixer = mixer
        mixer.reading = {"memory": "memory"}

    def forward(self, x: Tensor, call: Call | None = None) -> Tensor:
        return self.mixer(x, self._told(x, call))

    def prefill(self, x: Tensor, call: Call | None = None) -> tuple[Tensor, Any]:
        return self.mixer.prefill(x, self._told(x, call))

    def step(self, x: Tensor, state: Any, call: Call | None = None) -> tuple[Tensor, Any]:
        return self.mixer.step(x, state, self._told(x, call))

    def _told(self, x: Tensor, call: Call | None) -> Call:
        call = call or Call()
        width = self.mixer.spec.width
        call.streams["memory"] = torch.cat([x] * -(-width // x.shape[-1]), dim=-1)[..., :width].sin()
        return call


def parallel_spec(kind: str, fields: dict[str, Any], branches: list[Any]) -> ModelSpec:
    """A model of one parallel block."""
    return ModelSpec.model_validate(
        {
            "vocab_size": 17,
            "d_model": D_MODEL,
            "defaults": {"mamba2": {"head_dim": 16, "d_state": 4}, "attention": {"heads": 4}},
            "layers": [{"parallel": {"branches": branches, "merge": {kind: fields}}}],
        }
    )


def model_of(spec: ModelSpec) -> Any:
    return shaken(compile_model(spec, dtype=torch.float64))


def ids_of(spec: ModelSpec, batch: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.vocab, (batch, length), generator=generator)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def continued(model: Any, ids_bl: Tensor, prefilled: int) -> tuple[Tensor, Any]:
    """Logits (batch, length, vocab) of a prefill and a step for each later token, and the last state."""
    with torch.no_grad():
        logits, state = model.prefill(ids_bl[:, :prefilled])
        outputs = list(logits.unbind(1))
        for t in range(prefilled, ids_bl.shape[1]):
            logits, state = model.step(ids_bl[:, t], state)
            outputs.append(logits)
    return torch.stack(outputs, 1), state


def inputs(batch: int, length: int, d_model: int = D_MODEL, seed: int = 0) -> Tensor:
    return random(batch, length, d_model, seed=seed)


def relative(found: Tensor, truth: Tensor) -> float:
    """Largest difference, as a share of the largest true value."""
    return ((found - truth).abs().max() / truth.abs().max().clamp_min(1e-300)).item()
