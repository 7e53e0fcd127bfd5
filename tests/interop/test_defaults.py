"""Configs as they come, at the sizes that were published: legal specs that read back as the same model."""

from __future__ import annotations

import pytest
import transformers

from archsearch.interop.families import FAMILIES
from archsearch.interop.importing import plan
from archsearch.spec import model_cost, parse_spec, to_yaml

NEEDS = {"lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16}}
"""Fields without which a family's config is none."""


@pytest.mark.parametrize("model_type", FAMILIES)
def test_config(model_type: str) -> None:
    config = transformers.AutoConfig.for_model(model_type, **NEEDS.get(model_type, {}))
    spec = plan(config).spec()
    text = to_yaml(spec)
    assert parse_spec(text).hash == spec.hash
    assert len(text.splitlines()) < 100
    assert model_cost(spec, context=1).total.params > 10**8
