"""torch's own flash attention with a window, which scaled_dot_product_attention does not hand on to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def windowed_attention(q_blhe: Tensor, k_blge: Tensor, v_blge: Tensor, scale: float, window: int) -> Tensor:
    """Causal attention to the last `window` tokens, (b, l, h, e). Heads g may be fewer than h."""
    length, width = q_blhe.shape[1], q_blhe.shape[-1]
    if pad := -width % 8:
        q_blhe, k_blge, v_blge = (F.pad(t, (0, pad)) for t in (q_blhe, k_blge, v_blge))
    y_blhe = torch.ops.aten._flash_attention_forward(
        q_blhe,
        k_blge,
        v_blge,
        None,
        None,
        length,
        length,
        0.0,
        True,
        False,
        scale=scale,
        window_size_left=window - 1,
        window_size_right=0,
    )[0]
    return y_blhe[..., :width] if pad else y_blhe
