"""Recurrent layers against those of transformers, with random weights copied as the mixers' docstrings say.

Both sides compute in float64: where transformers asks for float32 by name, it is given float64 (`wide`).
Shape suffixes: b batch, l length, d d_model.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from contract.building import inputs, layer_of, random, relative
from torch import Tensor, nn

from archsearch.mixers.base import Surroundings
from archsearch.mixers.table import MIXERS

transformers = pytest.importorskip("transformers")

D_MODEL = 24
LENGTH = 75
"""More than a chunk of 64, and odd."""


class _Wide:
    """torch, whose float32 is float64."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def wide(monkeypatch: pytest.MonkeyPatch, module: Any) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(module, "torch", _Wide())
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def modeling(family: str) -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def perturbed(layer: nn.Module) -> Any:
    """Every parameter random, of a size at which all of them matter."""
    layer.double()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(layer.named_parameters()):
            noise = random(*parameter.shape, seed=i)
            scale = 0.3 if parameter.ndim < 2 or "A_log" in name else parameter.shape[-1] ** -0.5
            parameter.copy_(noise * scale + (1.0 if "norm" in name else 0.0))
    return layer


def mixer_with(kind: str, fields: dict[str, Any], weights: dict[str, Tensor], eps: float = 1e-6) -> Any:
    """The mixer with these weights: all of them, and no others."""
    mixer = MIXERS[kind](layer_of(kind, fields, D_MODEL), Surroundings(D_MODEL, eps)).double()
    shaped = {name: weights[name].reshape(p.shape) for name, p in mixer.state_dict().items()}
    mixer.load_state_dict(shaped)
    assert set(weights) == set(shaped)
    return mixer


def assert_same(mixer: Any, truth_bld: Tensor, x_bld: Tensor) -> None:
    """One forward, and a prefill continued by steps."""
    with torch.no_grad():
        assert relative(mixer(x_bld), truth_bld) <= 1e-10
        y_bld, state = mixer.prefill(x_bld[:, :70])
        assert relative(y_bld, truth_bld[:, :70]) <= 1e-10
        for t in range(70, LENGTH):
            y_bd, state = mixer.step(x_bld[:, t], state)
            assert relative(y_bd, truth_bld[:, t]) <= 1e-10


def x_of() -> Tensor:
    return inputs(2, LENGTH, D_MODEL)


def test_kimi_delta_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("kimi_linear"), x_of()
    config = transformers.KimiLinearConfig(
        hidden_size=D_MODEL,
        linear_num_heads=3,
        linear_head_dim=8,
        linear_conv_kernel_dim=4,
        rms_norm_eps=1e-3,
    )
    theirs = perturbed(module.KimiLinearDeltaAttention(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    w = dict(theirs.named_parameters())
    names = ("q_proj", "k_proj", "v_proj", "forget_gate.f_a_proj", "g_a_proj", "b_proj")
    weights = {
        "in_proj.weight": torch.cat([w[f"{name}.weight"] for name in names]),
        "conv.weight": w["conv1d.weight"],
        "f_proj.weight": w["forget_gate.f_b_proj.weight"],
        "g_proj.weight": w["g_b_proj.weight"],
        "dt_bias": w["forget_gate.dt_bias"],
        "A_log": w["forget_gate.A_log"],
        "norm.weight": w["o_norm.weight"],
        "out_proj.weight": w["o_proj.weight"],
    }
    fields = {"heads": 3, "head_dim": 8, "norm_eps": 1e-3}
    assert_same(mixer_with("kda", fields, weights), truth_bld, x_bld)


@pytest.mark.parametrize("bound", [5.0, None])
def test_delta_attention_of_ling(bound: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("bailing_hybrid"), x_of()
    config = transformers.BailingHybridConfig(
        hidden_size=D_MODEL,
        linear_num_heads=3,
        linear_head_dim=8,
        linear_conv_kernel_dim=3,
        rms_norm_eps=1e-5,
        kda_safe_gate=bound is not None,
        kda_lower_bound=-5.0,
    )
    theirs = perturbed(module.BailingHybridDeltaAttention(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    w = dict(theirs.named_parameters())
    names = ("q_proj", "k_proj", "v_proj", "forget_gate.f_proj", "g_proj", "b_proj")
    weights = {
        "in_proj.weight": torch.cat([w[f"{name}.weight"] for name in names]),
        "conv.weight": w["conv1d.weight"],
        "dt_bias": w["forget_gate.dt_bias"],
        "A_log": w["forget_gate.A_log"],
        "norm.weight": w["o_norm.weight"],
        "out_proj.weight": w["o_proj.weight"],
    }
    fields = {"heads": 3, "head_dim": 8, "d_conv": 3, "gate_rank": "full", "decay_bound": bound}
    assert_same(mixer_with("kda", fields, weights, eps=1e-5), truth_bld, x_bld)


@pytest.mark.parametrize("layer", [0, 2])
def test_lightning_attention_of_minimax(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("minimax"), x_of()
    config = transformers.MiniMaxConfig(
        hidden_size=D_MODEL, num_attention_heads=4, head_dim=8, num_hidden_layers=6, block_size=16
    )
    with wide(monkeypatch, module):
        theirs = perturbed(module.MiniMaxLightningAttention(config, layer))
        with torch.no_grad():
            truth_bld = theirs(x_bld, None, None)[0]
    w = dict(theirs.named_parameters())
    weights = {
        "in_proj.weight": torch.cat([w["qkv_proj.weight"], w["output_gate.weight"]]),
        "norm.weight": w["norm.weight"],
        "out_proj.weight": w["out_proj.weight"],
    }
    scale = 1 - layer / (6 - 1 + 1e-5) + 1e-5
    mixer = mixer_with("lightning", {"heads": 4, "head_dim": 8, "decay_scale": scale}, weights)
    assert_same(mixer, truth_bld, x_bld)


def test_recurrent_block_of_recurrent_gemma(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("recurrent_gemma"), x_of()
    config = transformers.RecurrentGemmaConfig(
        hidden_size=D_MODEL, lru_width=24, num_attention_heads=3, conv1d_width=4, num_key_value_heads=1
    )
    theirs = perturbed(module.RecurrentGemmaRecurrentBlock(config, 0))
    positions = torch.arange(LENGTH).expand(2, -1)
    with torch.no_grad(), wide(monkeypatch, module):
        monkeypatch.setattr(module.RecurrentGemmaRglru._rnn_scan, "__defaults__", (torch.float64,))
        truth_bld = theirs(x_bld, positions, None, use_cache=False)[0]
    mixer = mixer_with("rglru", {"width": 24, "heads": 3}, dict(theirs.named_parameters()))
    assert_same(mixer, truth_bld, x_bld)


@pytest.mark.parametrize("heads", [1, 2])
def test_multi_head_mamba_of_zamba(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("zamba"), x_of()
    config = transformers.ZambaConfig(
        hidden_size=D_MODEL, n_mamba_heads=heads, mamba_d_state=5, mamba_dt_rank=3, num_hidden_layers=3
    )
    theirs = perturbed(module.ZambaMambaMixer(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    w = dict(theirs.named_parameters())
    weights = {
        "in_proj.weight": w["in_proj.weight"].unflatten(0, (-1, 2)).transpose(0, 1),
        "conv.weight": w["conv1d.weight"],
        "conv.bias": w["conv1d.bias"],
        "x_proj.weight": w["x_proj_weight"],
        "dt_proj.weight": w["dt_proj_weight"],
        "dt_proj.bias": w["dt_proj_bias"],
        "A_log": w["A_log"],
        "D": w["D"],
        "out_proj.weight": w["out_proj.weight"],
    }
    fields = {"heads": heads, "d_state": 5, "dt_rank": 3}
    assert_same(mixer_with("mamba1", fields, weights), truth_bld, x_bld)


MAMBA2: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], float]] = {
    "mamba2": (
        "Mamba2Config",
        "Mamba2Mixer",
        {"state_size": 5, "num_heads": 6, "head_dim": 8, "n_groups": 2, "time_step_limit": (0.1, 0.8)},
        {"head_dim": 8, "groups": 2, "dt_limit": [0.1, 0.8]},
        1e-5,
    ),
    "bamba": (
        "BambaConfig",
        "BambaMixer",
        {
            "mamba_d_state": 5,
            "mamba_n_heads": 6,
            "mamba_d_head": 8,
            "mamba_n_groups": 3,
            "rms_norm_eps": 1e-3,
        },
        {"head_dim": 8, "groups": 3, "norm_eps": 1e-3},
        1e-6,
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridMambaLayer",
        {"mamba_d_state": 5, "mamba_n_heads": 6, "mamba_d_head": 8, "mamba_n_groups": 1},
        {"head_dim": 8},
        1e-6,
    ),
    "nemotron_h": (
        "NemotronHConfig",
        "NemotronHMamba2Mixer",
        {"ssm_state_size": 5, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "time_step_min": 0.4},
        {"heads": 4, "head_dim": 8, "groups": 2, "dt_limit": [0.4, float("inf")]},
        1e-5,
    ),
    "zamba2": (
        "Zamba2Config",
        "Zamba2MambaMixer",
        {
            "mamba_d_state": 5,
            "n_mamba_heads": 6,
            "mamba_headdim": 8,
            "mamba_ngroups": 2,
            "time_step_min": 0.3,
        },
        {"head_dim": 8, "groups": 2, "dt_limit": [0.3, float("inf")]},
        1e-5,
    ),
}


@pytest.mark.parametrize("family", MAMBA2)
def test_mamba2_of(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config_name, mixer_name, their_fields, fields, eps = MAMBA2[family]
    module, x_bld = modeling(family), x_of()
    config = getattr(transformers, config_name)(hidden_size=D_MODEL, **their_fields)
    theirs = perturbed(getattr(module, mixer_name)(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    weights = {name.replace("conv1d", "conv"): p for name, p in theirs.named_parameters()}
    mixer = mixer_with("mamba2", fields | {"d_state": 5}, weights, eps)
    assert_same(mixer, truth_bld, x_bld)


@pytest.mark.parametrize("norm", ["after", "before", "none"])
def test_mamba2_of_falcon_h1(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("falcon_h1"), x_of()
    config = transformers.FalconH1Config(
        hidden_size=D_MODEL,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=2,
        mamba_d_state=5,
        mamba_rms_norm=norm != "none",
        mamba_norm_before_gate=norm == "before",
        ssm_multipliers=[0.5, 2.0, 0.3, 1.5, 3.0],
        ssm_in_multiplier=1.0,
        rms_norm_eps=1e-3,
    )
    theirs = perturbed(module.FalconH1Mixer(config, 0))
    theirs.register_buffer("mup_vector", module.compute_mup_vector(config).double(), persistent=False)
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    weights = {name.replace("conv1d", "conv"): p for name, p in theirs.named_parameters()}
    fields = {"heads": 4, "head_dim": 8, "groups": 2, "d_state": 5, "gated_norm": norm, "norm_eps": 1e-3}
    multipliers = [0.5, 2.0, float(torch.tensor(0.3)), 1.5, 3.0]
    mixer = mixer_with("mamba2", fields | {"multipliers": multipliers}, weights)
    assert_same(mixer, truth_bld, x_bld)


def test_gated_delta_net_of_olmo_hybrid(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("olmo_hybrid"), x_of()
    config = transformers.OlmoHybridConfig(
        hidden_size=D_MODEL,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        linear_allow_neg_eigval=True,
    )
    theirs = perturbed(module.OlmoHybridGatedDeltaNet(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    w = dict(theirs.named_parameters())
    names = ("q_proj", "k_proj", "v_proj", "g_proj", "b_proj", "a_proj")
    weights = {
        "in_proj.weight": torch.cat([w[f"{name}.weight"] for name in names]),
        "conv.weight": w["conv1d.weight"],
        "dt_bias": w["dt_bias"],
        "A_log": w["A_log"],
        "norm.weight": w["o_norm.weight"],
        "out_proj.weight": w["o_proj.weight"],
    }
    fields = {
        "key_heads": 2,
        "value_heads": 4,
        "key_dim": 8,
        "value_dim": 6,
        "beta_scale": 2,
        "norm_eps": 1e-5,
    }
    assert_same(mixer_with("gated_deltanet", fields, weights), truth_bld, x_bld)


def test_gated_delta_net_of_qwen3_5(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling("qwen3_5"), x_of()
    config = transformers.Qwen3_5TextConfig(
        hidden_size=D_MODEL,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=6,
        rms_norm_eps=1e-3,
    )
    theirs = perturbed(module.Qwen3_5GatedDeltaNet(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    w = {name.replace("conv1d", "conv"): p for name, p in theirs.named_parameters()}
    parts = [w.pop(f"in_proj_{name}.weight") for name in ("qkv", "z", "b", "a")]
    fields = {"key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6, "norm_eps": 1e-3}
    mixer = mixer_with("gated_deltanet", fields, w | {"in_proj.weight": torch.cat(parts)})
    assert_same(mixer, truth_bld, x_bld)


@pytest.mark.parametrize("family", ["lfm2", "lfm3"])
@pytest.mark.parametrize("bias", [True, False])
def test_short_convolution_of(family: str, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x_bld = modeling(family), x_of()
    config = getattr(transformers, f"{family.title()}Config")(
        hidden_size=D_MODEL, conv_L_cache=3, conv_bias=bias, num_hidden_layers=2, layer_types=["conv"] * 2
    )
    theirs = perturbed(getattr(module, f"{family.title()}ShortConv")(config, 0))
    with torch.no_grad(), wide(monkeypatch, module):
        truth_bld = theirs(x_bld)
    mixer = mixer_with("gated_conv", {"bias": bias, "conv_bias": bias}, dict(theirs.named_parameters()))
    assert_same(mixer, truth_bld, x_bld)
