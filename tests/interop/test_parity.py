"""Imported models compute what their sources do: logits within the source's own rounding, and the same text.

The bar for logits: no further from the source than the source is from itself when each of its weights moves
by one unit in the last place, at the largest and in the mean square, and 5e-6 of the largest logit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from archsearch.compiler import LanguageModel
from archsearch.interop import from_transformers

from .sources import FAMILIES, SCALINGS, STEPS, VOCAB, logits, self_noise, sizes, source, variant

SEEDS = 3
CASES = [(name, seed) for name in FAMILIES for seed in range(SEEDS)]
RELATIVE = 5e-6
NEW_TOKENS = 64


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def pair(request: pytest.FixtureRequest) -> tuple[Any, LanguageModel]:
    """A transformers model and its import."""
    hf = source(*request.param)
    return hf, from_transformers(hf)[1]


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


def test_logits(pair: tuple[Any, LanguageModel]) -> None:
    check_logits(*pair)


@pytest.mark.parametrize("name", [*SCALINGS, *STEPS])
def test_logits_of_variants(name: str) -> None:
    hf = variant(name)
    check_logits(hf, from_transformers(hf)[1])


def check_logits(hf: Any, ours: LanguageModel) -> None:
    ids_bl = tokens(2, 48)
    expected = logits(hf, ids_bl)
    with torch.no_grad():
        largest, typical = sizes(ours(ids_bl) - expected)
    largest_noise, typical_noise = self_noise(hf, ids_bl)
    assert largest <= largest_noise
    assert typical <= typical_noise
    assert largest <= RELATIVE * expected.abs().max().item()


def test_greedy_text(pair: tuple[Any, LanguageModel]) -> None:
    hf, ours = pair
    ids_bl = tokens(2, 11)
    with torch.no_grad():
        assert continued(ours, ids_bl).tolist() == continued_by_transformers(hf, ids_bl).tolist()


def continued(model: LanguageModel, ids_bl: Tensor) -> Tensor:
    """The next NEW_TOKENS tokens, each the likeliest, with the model's states."""
    logits_blv, state = model.prefill(ids_bl)
    logits_bv, chosen = logits_blv[:, -1], []
    for _ in range(NEW_TOKENS):
        chosen.append(logits_bv.argmax(-1))
        logits_bv, state = model.step(chosen[-1], state)
    return torch.stack(chosen, dim=1)


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
