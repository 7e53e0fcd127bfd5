"""The loss of a language model.

Shape suffixes: t tokens, v vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from archsearch.mixers.kernels import Kernels


def cross_entropy(logits_tv: Tensor, targets_t: Tensor, *, ignore: int, kernels: Kernels) -> Tensor:
    """The mean of -log softmax(logits)[target] over the tokens whose target is not `ignore` (NaN if there are
    none), in float32 at least."""
    kernel = kernels.choose("cross_entropy", needed=False).of(logits_tv)
    if kernel is not None:
        return kernel(logits_tv, targets_t, ignore=ignore)
    wide = torch.promote_types(logits_tv.dtype, torch.float32)
    return F.cross_entropy(logits_tv.to(wide), targets_t, ignore_index=ignore)
