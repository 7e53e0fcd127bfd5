"""Fields that the import passes over change nothing: transformers itself says so, field by field.

A model of every family is built again with another value of each such field and the same weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from archsearch.interop.families import family_of
from archsearch.interop.fields import Fields

from .sources import FAMILIES, logits, source

ROUNDING = 1e-5
"""Relative: some of these fields choose another way to the same numbers."""
NEVER = {"return_dict"}
"""transformers returns a tuple, which these tests do not read."""


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_passed_over_changes_nothing(name: str) -> None:
    hf = source(name, 0)
    ids_bl = torch.arange(1, 17)[None]
    expected = logits(hf, ids_bl)
    bound = ROUNDING * expected.abs().max()
    given, tried = hf.config.to_dict(), 0
    for field in passed_over(hf.config) - NEVER:
        changed = with_another(hf, given, field, ids_bl)
        if changed is not None:
            tried += 1
            assert (changed - expected).abs().max() <= bound, field
    assert tried > 5


def passed_over(config: Any) -> set[str]:
    """Fields that are known and that no part reads."""
    family = family_of(config.model_type)
    watched = Fields(config, family.ignored)
    known = set(watched._known)
    watched._known.clear()
    family.trunk(watched)
    list(family.layers(watched))
    return (known & config.to_dict().keys()) - watched._known


def with_another(hf: Any, given: dict[str, Any], field: str, ids_bl: Tensor) -> Tensor | None:
    """Logits with another value of the field; None where transformers does not take one."""
    value = given[field]
    if not isinstance(value, bool | int | float):
        return None
    other = not value if isinstance(value, bool) else value + 1
    try:
        config = type(hf.config)(**given | {field: other})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        model.load_state_dict(hf.state_dict())
        return logits(model, ids_bl)
    except (StrictDataclassError, RuntimeError, ValueError, TypeError):
        return None
