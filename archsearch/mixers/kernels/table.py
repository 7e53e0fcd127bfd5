"""Operations that have CUDA kernels, and where each kernel comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archsearch.mixers.kernels import calls

HALF = ("torch.float16", "torch.bfloat16")
ALL = (*HALF, "torch.float32")


@dataclass(frozen=True)
class Kernel:
    """A function of a package, the call that gives it our tensors, and the dtypes it takes."""

    module: str
    name: str
    call: Callable[..., Any]
    dtypes: tuple[str, ...] = ALL
    forms: frozenset[str] = frozenset()
    """What it can do beyond the plain operation, of what layers may ask for."""
    plain: bool = True
    """Whether it is of use for the plain operation too."""
    outdone: tuple[int, int] | None = None
    """The compute capability from which on torch's own kernel does the plain operation faster."""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


SSD = "mamba_ssm.ops.triton.ssd_combined"
STEPS = "archsearch.mixers.kernels.triton_steps"

OPERATIONS: dict[str, tuple[Kernel, ...]] = {
    "attention": (
        Kernel(
            "flash_attn",
            "flash_attn_func",
            calls.attention,
            HALF,
            frozenset({"window", "softcap"}),
            outdone=(9, 0),
        ),
        Kernel(
            "archsearch.mixers.kernels.torch_flash",
            "windowed_attention",
            calls.attention_by_torch,
            HALF,
            frozenset({"window"}),
            plain=False,
        ),
    ),
    "packed_attention": (
        Kernel(
            "flash_attn",
            "flash_attn_varlen_func",
            calls.packed_attention,
            HALF,
            frozenset({"window", "softcap"}),
        ),
        Kernel(
            "torch.nn.attention.varlen",
            "varlen_attn",
            calls.packed_attention_by_torch,
            HALF,
            frozenset({"window"}),
        ),
    ),
    "cached_attention": (
        Kernel("archsearch.mixers.kernels.triton_cached", "attend_in_place", calls.cached_attention),
    ),
    "short_conv": (Kernel("causal_conv1d", "causal_conv1d_fn", calls.short_conv),),
    "short_conv_step": (Kernel(STEPS, "conv_step", calls.short_conv_step),),
    # Not float32: the products of these kernels would be TF32, with errors of 1e-3.
    "ssd": (Kernel(SSD, "mamba_chunk_scan_combined", calls.ssd, HALF),),
    "mamba2": (Kernel(SSD, "mamba_split_conv1d_scan_combined", calls.mamba2, HALF),),
    "ssd_step": (Kernel(STEPS, "ssd_step", calls.ssd_step),),
    "selective_scan": (
        Kernel("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", calls.selective_scan),
    ),
    "selective_scan_step": (
        Kernel(
            "mamba_ssm.ops.triton.selective_state_update",
            "selective_state_update",
            calls.selective_scan_step,
        ),
    ),
    "norm": (Kernel("archsearch.mixers.kernels.triton_norm", "rms_norm_beside", calls.norm),),
    "gated_norm": (Kernel("archsearch.mixers.kernels.triton_gate", "gated_rms_norm", calls.gated_norm),),
    "rope": (Kernel("archsearch.mixers.kernels.triton_rope", "rotate", calls.rope),),
    "swiglu": (Kernel("archsearch.mixers.kernels.triton_swiglu", "swiglu", calls.swiglu),),
    "cross_entropy": (Kernel("archsearch.mixers.kernels.triton_loss", "cross_entropy", calls.cross_entropy),),
}
"""Operation -> its kernels, the first usable one of which is taken. `mamba2` is a whole layer after its input
projection: convolution, scan, gate, norm and output projection."""

FUSED_IN_TORCH = {"attention": "torch.nn.functional.scaled_dot_product_attention"}
"""Operations whose native path is a fused kernel of torch's own on CUDA, in their plain form."""
