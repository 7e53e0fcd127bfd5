"""What kernels ask of a layer's widths: each function says in one line why a layer cannot use them, or
nothing. Known from the spec alone, so that it is said when a model is compiled, not in its first step."""

from __future__ import annotations

FLASH_WIDTH = 256
"""The widest head of the fused attention kernels."""

SCAN_STATES = 256
"""The largest state of Mamba-1's kernel."""


NORM_WIDTH = 16384
"""The widest row that a program of the norm's kernel holds."""


def attention_problem(head_dim: int, value_dim: int, *, sinks: bool = False) -> str | None:
    if sinks:
        return "sinks have no kernel"
    if value_dim != head_dim:
        return f"values are {value_dim} wide and keys {head_dim}"
    if head_dim > FLASH_WIDTH:
        return f"heads are {head_dim} wide, more than {FLASH_WIDTH}"
    return None


def cached_attention_problem(width: int) -> str | None:
    if width > FLASH_WIDTH:
        return f"heads are {width} wide, more than {FLASH_WIDTH}"
    return None


def short_conv_problem(channels: int, width: int) -> str | None:
    if not 2 <= width <= 4:
        return f"the kernel has 2 to 4 taps, this convolution {width}"
    if channels % 8:
        return f"the convolution's {channels} channels are no multiple of 8"
    return None


def ssd_problem(head_dim: int, d_state: int) -> str | None:
    if max(head_dim, d_state) > 256:
        return f"head_dim {head_dim} and d_state {d_state} must both be at most 256"
    return None


def mamba2_problem(inner: int, groups: int, d_state: int, heads: int, *, d_conv: int) -> str | None:
    """Of the whole layer's kernel, beyond `ssd_problem`."""
    if (width := 2 * inner + 2 * groups * d_state + heads) % 8:
        return f"2*d_inner + 2*groups*d_state + heads = {width} is no multiple of 8"
    return short_conv_problem(inner + 2 * groups * d_state, d_conv)


def norm_problem(width: int) -> str | None:
    if width > NORM_WIDTH:
        return f"the norm is {width} wide, more than {NORM_WIDTH}"
    return None


def swiglu_problem(activation: str, gate_scale: float) -> str | None:
    if activation != "swiglu":
        return f"{activation} has no kernel"
    if gate_scale != 1.0:
        return f"its gate is scaled by {gate_scale:g}"
    return None


def selective_scan_problem(d_state: int) -> str | None:
    if d_state > SCAN_STATES:
        return f"d_state {d_state} is more than {SCAN_STATES}"
    return None
