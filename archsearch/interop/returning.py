"""Models that archsearch exported, on their way back: their configs hold the spec they were made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from archsearch.interop.blueprint import Blueprint
from archsearch.interop.function import differences
from archsearch.interop.modules import first_names
from archsearch.interop.rules import Rule
from archsearch.interop.weights import unfilled
from archsearch.spec.errors import SpecError

REMOTE = "archsearch"
"""`model_type` of exports with their own code."""


def register() -> None:
    """Have transformers' Auto classes load such exports by the code here, not by the one in their folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from archsearch.interop.remote.configuration_archsearch import ArchsearchConfig
    from archsearch.interop.remote.modeling_archsearch import ArchsearchForCausalLM

    AutoConfig.register(REMOTE, ArchsearchConfig, exist_ok=True)
    AutoModelForCausalLM.register(ArchsearchConfig, ArchsearchForCausalLM, exist_ok=True)


def remote_blueprint(config: Any) -> Blueprint:
    """Of an export with its own code, whose weights have our names behind a prefix. Raises `SpecError`."""
    if not isinstance(getattr(config, "spec", None), dict):
        raise SpecError(f"{REMOTE} config: spec: is missing")
    blueprint = Blueprint(REMOTE, config.spec, ())
    names = dict.fromkeys(first_names(unfilled(blueprint.spec())).values())
    return replace(blueprint, rules=tuple(Rule((f"model.{name}",), name) for name in names))


def with_own_spec(blueprint: Blueprint, config: Any) -> Blueprint:
    """The blueprint with the spec that the config holds, if it holds one and that is the same model: it says
    also what transformers has no field for."""
    held = getattr(config, "archsearch_spec", None)
    if not isinstance(held, dict):
        return blueprint
    own = replace(blueprint, values=held)
    same = next(differences(blueprint.spec(), own.spec()), None) is None
    return own if same else blueprint
