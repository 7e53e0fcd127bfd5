"""Imported models compute what their sources do: logits within the source's own rounding, and the same text.

The bar for logits: in the mean square no further from the source than the source is from itself when each of
its weights moves by one unit in the last place, and nowhere more than 5e-6 of the largest logit. The largest
difference of all is one draw against a few: it may be TAIL times the largest of the source's own, so that the
test says the same on machines that round otherwise. (Of 144 models drawn anew, 142 stayed below it.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.compiler import LanguageModel
from archsearch.interop import from_transformers

from .sources import FAMILIES, SCALINGS, STEPS, VOCAB, lively, logits, self_noise, sizes, source, variant

SEEDS = 3
CASES = [(name, seed) for name in FAMILIES for seed in range(SEEDS)]
RELATIVE = 5e-6
TAIL = 2
NEW_TOKENS = 64
TIE = 1e-5
"""Tokens whose logits differ by less, relative to the largest, are equally likely."""


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


every_case = pytest.mark.parametrize(("name", "seed"), CASES, ids=[f"{n}-{seed}" for n, seed in CASES])


@every_case
def test_logits(name: str, seed: int) -> None:
    check_logits(source(name, seed))


@pytest.mark.parametrize("name", [*SCALINGS, *STEPS])
def test_logits_of_variants(name: str) -> None:
    check_logits(variant(name))


def check_logits(hf: Any) -> None:
    ours = from_transformers(hf)[1]
    ids_bl = tokens(2, 48)
    expected = logits(hf, ids_bl)
    with torch.no_grad():
        largest, typical = sizes(ours(ids_bl) - expected)
    largest_noise, typical_noise = self_noise(hf, ids_bl)
    assert typical <= typical_noise
    assert largest <= TAIL * largest_noise
    assert largest <= RELATIVE * expected.abs().max().item()


@every_case
def test_greedy_text(name: str, seed: int) -> None:
    """Decoding with caches on both sides, each token of the source's text is the likeliest here too."""
    hf = lively(source(name, seed))
    ours = from_transformers(hf)[1]
    ids_bl = tokens(2, 11)
    with torch.no_grad():
        assert shortfall(ours, ids_bl, continued_by_transformers(hf, ids_bl)) <= TIE


def shortfall(model: LanguageModel, ids_bl: Tensor, next_bl: Tensor) -> float:
    """How far the logits of a text's tokens are below the highest ones, at most, relative to the largest."""
    logits_blv, state = model.prefill(ids_bl)
    logits_bv, found = logits_blv[:, -1], 0.0
    for next_b in next_bl.unbind(1):
        below_b = logits_bv.amax(-1) - logits_bv.gather(-1, next_b[:, None])[:, 0]
        found = max(found, (below_b.max() / logits_bv.abs().max()).item())
        logits_bv, state = model.step(next_b, state)
    return found


def continued_by_transformers(hf: Any, ids_bl: Tensor) -> Tensor:
    cached = hf.generate(
        ids_bl,
        attention_mask=torch.ones_like(ids_bl),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        use_cache=True,
    )
    return cached[:, ids_bl.shape[1] :]
