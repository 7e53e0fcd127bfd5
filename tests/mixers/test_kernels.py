"""Which implementation is chosen, and why; and that a kernel which is wrong is found out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.building import layer_of
from torch import Tensor

from archsearch.compiler import compile_model
from archsearch.mixers.base import Call, Surroundings
from archsearch.mixers.kernels import KernelError, Kernels, calls, choice, trial
from archsearch.mixers.kernels.choice import find
from archsearch.mixers.kernels.table import OPERATIONS
from archsearch.mixers.selective_scan import selective_scan_reference, selective_scan_step
from archsearch.mixers.ssd import ssd_reference, ssd_step
from archsearch.mixers.table import MIXERS
from archsearch.spec import ModelSpec
from mixers.serving import Serving, attend_in_place

# Stand-ins: the packages' conventions, computed by the references.


def flash_attn(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, causal: bool, **more: Any) -> Tensor:
    assert causal
    assert more == {"window_size": (-1, -1), "softcap": 0.0}
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale).transpose(1, 2)


def flash_attn_varlen(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, _: Tensor, longest: int, __: int, **more: Any
) -> Tensor:
    q, k, v = (t.unflatten(0, (-1, longest)) for t in (q, k, v))
    return flash_attn(q, k, v, **more).flatten(0, 1)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    activation: str | None,
) -> Tensor:
    assert x.stride(1) == 1
    assert all(stride % 8 == 0 for stride in (x.stride(0), x.stride(2)))
    assert seq_idx is initial_states is None
    padded = F.pad(x.float(), (weight.shape[1] - 1, 0))
    y = F.conv1d(padded, weight[:, None], bias, groups=len(weight))
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def mamba_chunk_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, **more: Any
) -> Any:
    assert more == {"chunk_size": 256, "initial_states": None, "seq_idx": None, "return_final_states": True}
    y, last = ssd_reference(*(t.float() for t in (x, dt, A, B, C)))
    return (y + D[:, None] * x).to(x.dtype), last


def mamba_split_scan(
    u: Tensor,
    weight: Tensor,
    bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    *,
    rmsnorm_weight: Tensor,
    rmsnorm_eps: float,
    outproj_weight: Tensor,
    headdim: int,
    norm_before_gate: bool,
    **more: Any,
) -> Tensor:
    assert not norm_before_gate
    heads, conv = len(A), len(weight)
    z, conv_in, dt = u.split([heads * headdim, conv, heads], dim=-1)
    plain = {"seq_idx": None, "initial_states": None, "activation": "silu"}
    x, B, C = causal_conv1d(conv_in.contiguous().mT, weight, bias, **plain).mT.split(
        [heads * headdim, trial.STATE, trial.STATE], dim=-1
    )
    x = x.unflatten(-1, (heads, headdim))
    given = (x, F.softplus(dt + dt_bias), A, B[:, :, None], C[:, :, None])
    y = ssd_reference(*(t.float() for t in given))[0] + D[:, None] * x
    gated = y.flatten(-2) * F.silu(z)
    return F.linear(
        F.rms_norm(gated, gated.shape[-1:], rmsnorm_weight, rmsnorm_eps).to(u.dtype), outproj_weight
    )


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor,
    z: Tensor | None,
    delta_bias: Tensor,
    **more: Any,
) -> Any:
    assert more == {"delta_softplus": True, "return_last_state": True}
    given = (u.mT, F.softplus(delta.mT + delta_bias), A, B.mT, C.mT)
    y, last = selective_scan_reference(*(t.float() for t in given))
    y = y + D * u.mT
    return (y if z is None else y * F.silu(z.mT)).mT.to(u.dtype), last


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, D: Tensor, dt_bias: Tensor
) -> Tensor:
    assert state.ndim == 4
    y = torch.empty_like(x)
    for head in range(x.shape[1]):
        group = head * B.shape[1] // x.shape[1]
        given = (x[:, head], dt[:, head] + dt_bias[head], A[head], B[:, group], C[:, group], state[:, head])
        y_bp, new = selective_scan_step(*(t.float() for t in given))
        y[:, head] = (y_bp + D[head] * x[:, head]).to(x.dtype)
        state[:, head] = new
    return y


def conv_step(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    window = torch.cat([state, x[:, None]], dim=1).float()
    y = torch.einsum("bkc,ck->bc", window, weight.float()) + (0 if bias is None else bias)
    return (F.silu(y) if silu else y).to(x.dtype), window[:, 1:].to(state.dtype)


def ssd_once(
    x: Tensor,
    dt: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    low: float,
    high: float,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    size = F.softplus(dt.float() + dt_bias).clamp(low, high)
    y, after = ssd_step(x.float(), size, -A_log.exp(), B.float(), C.float(), state)
    return (y + D[:, None] * x).to(x.dtype), state.copy_(after) if in_place else after


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, groups: int, norm_first: bool) -> Tensor:
    assert (groups, norm_first) == (1, False)
    return F.rms_norm(x.float() * F.silu(gate.float()), x.shape[-1:], weight, eps).to(gate.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype, added: None) -> tuple[Tensor, Tensor]:
    return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(dtype), x


def cross_entropy(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=ignore)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    assert cos.dtype == torch.float32
    assert not interleaved
    a, b, rest = x.float().split([cos.shape[1], cos.shape[1], x.shape[-1] - 2 * cos.shape[1]], dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1).to(x.dtype)


def swiglu(up: Tensor) -> Tensor:
    gate, value = up.float().chunk(2, dim=-1)
    return (F.silu(gate) * value).to(up.dtype)


STAND_INS: dict[str, Callable[..., Any]] = {
    "attention": flash_attn,
    "packed_attention": flash_attn_varlen,
    "cached_attention": attend_in_place,
    "short_conv": causal_conv1d,
    "short_conv_step": conv_step,
    "ssd": mamba_chunk_scan,
    "ssd_step": ssd_once,
    "mamba2": mamba_split_scan,
    "selective_scan": selective_scan,
    "selective_scan_step": selective_state_update,
    "norm": rms_norm,
    "gated_norm": gated_norm,
    "rope": rotate,
    "swiglu": swiglu,
    "cross_entropy": cross_entropy,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_trial_passes_what_keeps_the_convention_and_nothing_else(operation: str) -> None:
    call, kernel = OPERATIONS[operation][0].call, STAND_INS[operation]
    assert trial.complaint(operation, partial(call, kernel), "cpu") is None

    def off(*given: Any, **more: Any) -> Any:
        y = kernel(*given, **more)
        return (y[0] * 1.1, *y[1:]) if isinstance(y, tuple) else y * 1.1

    def wrong_backward(*given: Any, **more: Any) -> Any:
        y = kernel(*given, **more)
        first = y[0] if isinstance(y, tuple) else y
        spoilt = first + 0.2 * (first - first.detach())
        return (spoilt, *y[1:]) if isinstance(y, tuple) else spoilt

    def broken(*given: Any, **more: Any) -> Any:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    assert "returns nonsense: off by" in str(trial.complaint(operation, partial(call, off), "cpu"))
    if trial.TRIALS[operation].gradients:
        assert "nonsense" in str(trial.complaint(operation, partial(call, wrong_backward), "cpu"))
    why = "raises RuntimeError: no kernel image is available for execution on the device"
    assert trial.complaint(operation, partial(call, broken), "cpu") == why


def test_old_states_stay_valid() -> None:
    given = [torch.ones(2, 6), torch.ones(2, 6), -torch.ones(6, 5), *torch.ones(2, 2, 1, 5), torch.ones(6)]
    state = torch.ones(2, 6, 5)
    y, new = OPERATIONS["selective_scan_step"][0].call(selective_state_update, *given, state)
    assert torch.equal(state, torch.ones_like(state))
    B, C = (t.squeeze(1) for t in given[3:5])
    expected, expected_state = selective_scan_step(*given[:3], B, C, state)
    torch.testing.assert_close(y, expected + 1)
    torch.testing.assert_close(new, expected_state)


def test_a_cpu_model_is_native_and_says_why() -> None:
    for operation in OPERATIONS:
        found = Kernels("auto", "cpu").choose(operation)
        assert (found.name, found.why, found.function) == ("torch", "the model is on cpu", None)
        assert Kernels("native", "cuda").choose(operation).why == "asked for native"


def test_require_on_a_cpu_is_refused_with_the_reason() -> None:
    message = r"causal_conv1d.causal_conv1d_fn is required for short_conv, but the model is on cpu"
    with pytest.raises(KernelError, match=message):
        Kernels("require", "cpu").choose("short_conv")


def test_a_model_requires_the_kernels_of_its_own_layers_alone() -> None:
    def spec(layer: Any) -> ModelSpec:
        return ModelSpec.model_validate({"d_model": 64, "vocab_size": 8, "layers": [layer]})

    compile_model(spec("mlp"), kernels="require")
    with pytest.raises(KernelError, match="required for short_conv"):
        compile_model(spec("gated_conv"), kernels="require")


def test_a_broken_package_is_told_from_a_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('libcudart.so.12:\\n cannot open')\n")
    (tmp_path / "partial_kernels.py").write_text("other = 1\n")
    (tmp_path / "sound_kernels.py").write_text("def scan(): return 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("no_such_kernels", "scan") == (None, "no_such_kernels is not installed")
    function, why = find("broken_kernels", "scan")
    assert function is None
    assert why == "broken_kernels is installed but broken: libcudart.so.12: cannot open"
    assert "has no attribute 'scan'" in find("partial_kernels", "scan")[1]
    function, why = find("sound_kernels", "scan")
    assert function is not None
    assert function() == 3
    for name in ("partial_kernels", "sound_kernels"):
        sys.modules.pop(name, None)


def test_an_installed_kernel_that_cannot_be_tried_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "find", lambda module, name: (lambda: None, "found"))
    kernel = OPERATIONS["ssd"][0]
    choice.probe.cache_clear()
    if not torch.cuda.is_available():
        why = f"{kernel.module} is installed, but there is no CUDA device to try it on"
        assert choice.probe(kernel, "ssd", "cuda") == (None, why)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choice, "complaint", lambda *given: "returns nonsense")
    choice.probe.cache_clear()
    assert choice.probe(kernel, "ssd", "cuda") == (None, f"{kernel} returns nonsense")
    monkeypatch.setattr(choice, "complaint", lambda *given: None)
    choice.probe.cache_clear()
    function, why = choice.probe(kernel, "ssd", "cuda")
    assert function is not None
    assert why == "usable, for float16, bfloat16"
    choice.probe.cache_clear()


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
def test_plain_attention_is_torchs_where_that_is_faster(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(choice, "probe", lambda kernel, *more: (lambda: None, "usable"))
    choice._choose.cache_clear()
    auto, required = Kernels("auto", "cuda"), Kernels("require", "cuda")
    plain = auto.choose("attention")
    if capability >= (9, 0):
        assert plain.name == "torch.nn.functional.scaled_dot_product_attention"
        assert plain.why == "torch's own is faster than flash_attn.flash_attn_func on this GPU"
    else:
        assert plain.name == "flash_attn.flash_attn_func"
    assert auto.choose("attention", forms={"window"}).name == "flash_attn.flash_attn_func"
    assert required.choose("attention").name == "flash_attn.flash_attn_func"
    choice._choose.cache_clear()


def test_forms_that_a_kernel_lacks_are_named() -> None:
    choice._choose.cache_clear()
    found = choice._choose("packed_attention", "cuda", None, frozenset({"softcap", "window"}))
    if found.function is None:
        assert "torch.nn.attention.varlen.varlen_attn has no softcap" in found.why


@pytest.mark.parametrize(
    ("kind", "fields", "operation", "problem"),
    [
        ("mamba2", {"heads": 3, "head_dim": 8}, "mamba2", r"heads = \d+ is no multiple of 8"),
        (
            "mamba2",
            {"head_dim": 16, "groups": 2, "norm_groups": 4},
            "mamba2",
            "it norms 4 groups, and 2 share",
        ),
        ("mamba2", {"d_state": 300}, "ssd", "at most 256"),
        ("mamba2", {"d_conv": 7}, "short_conv", "the kernel has 2 to 4 taps, this convolution 7"),
        ("mamba1", {"d_state": 300}, "selective_scan", "d_state 300 is more than 256"),
        ("gated_conv", {"width": 30}, "short_conv", "30 channels are no multiple of 8"),
        ("attention", {"heads": 4, "sinks": True}, "attention", "sinks have no kernel"),
        ("attention", {"heads": 1, "head_dim": 320}, "attention", "320 wide, more than 256"),
        ("mla", {"nope_dim": 8}, "attention", "values are 8 wide and keys 12"),
    ],
    ids=str,
)
def test_widths_are_checked_when_a_layer_is_built(
    kind: str, fields: dict[str, Any], operation: str, problem: str
) -> None:
    kernels = Serving()
    MIXERS[kind](layer_of(kind, fields), Surroundings(64, kernels=kernels))
    found = [why for asked, why, _ in kernels.asked if asked == operation]
    assert any(why is not None and re.search(problem, why) for why in found), found


def test_tensors_elsewhere_and_dtypes_without_a_kernel_take_the_native_path() -> None:
    on_cuda = choice.Choice("ssd", "kernel", "", lambda: None, ("torch.float32",))
    assert on_cuda.of(torch.zeros(1)) is None
    here = choice.Choice("ssd", "kernel", "", lambda: None, ("torch.float32",), "cpu")
    assert here.of(torch.zeros(1)) is not None
    assert here.of(torch.zeros(1, dtype=torch.float64)) is None


def test_mamba2s_scan_kernel_is_used_under_autocast_without_a_convolution_kernel() -> None:
    spec = ModelSpec.model_validate(
        {"d_model": 32, "vocab_size": 8, "layers": [{"mamba2": {"d_state": 16, "head_dim": 16}}]}
    )
    mixer = MIXERS["mamba2"](spec.nodes[0].layer, Surroundings(32))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    seen = []

    def scan(x: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x.dtype)
        return calls.ssd(mamba_chunk_scan, x, *rest)

    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        native = mixer(x)
        mixer.scan_kernel = choice.Choice("ssd", "kernel", "", scan, ("torch.bfloat16",), "cpu")
        y = mixer(x)
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(y, native, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("read", [False, True])
def test_mamba1s_scan_kernel_gates_where_no_other_layer_reads_what_comes_before(read: bool) -> None:
    spec = ModelSpec.model_validate({"d_model": 32, "vocab_size": 8, "layers": ["mamba1"]})
    mixer = MIXERS["mamba1"](spec.nodes[0].layer, Surroundings(32))
    mixer.reset_parameters(torch.Generator().manual_seed(0))
    if read:
        mixer.telling["memory"] = "stream"
    gates = []

    def scan(*given: Tensor, **more: Tensor | None) -> tuple[Tensor, Tensor]:
        gates.append(more.get("z_bli") is not None)
        return calls.selective_scan(selective_scan, *given, **more)

    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    told, told_by_kernel = Call(), Call()
    native = mixer(x, told)
    mixer.scan_kernel = choice.Choice("selective_scan", "kernel", "", scan, ("torch.float32",), "cpu")
    torch.testing.assert_close(mixer(x, told_by_kernel), native, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixer.prefill(x)[0], native, atol=1e-5, rtol=1e-5)
    assert gates == [not read] * 2
    assert told.streams.keys() == told_by_kernel.streams.keys()
    for name, stream in told.streams.items():
        torch.testing.assert_close(told_by_kernel.streams[name], stream, atol=1e-5, rtol=1e-5)
