"""YAML file <-> ModelSpec."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from archsearch.spec.errors import under, validate
from archsearch.spec.model import ModelSpec
from archsearch.spec.source import Source


def load_spec(path: str | Path) -> ModelSpec:
    """Read a model spec, or the `arch` section of an experiment file.

    Raises `SpecError` with the text `file:line:col: path: message`.
    """
    return spec_from(Source.read(path))


def parse_spec(text: str, name: str = "<text>") -> ModelSpec:
    """`load_spec` of YAML text; `name` stands for the file in errors."""
    return spec_from(Source(name, text))


def spec_from(source: Source) -> ModelSpec:
    value = source.value
    if isinstance(value, dict) and "arch" in value:
        return source.check(
            ModelSpec, lambda: under("arch", lambda arch: validate(ModelSpec, arch), value["arch"])
        )
    return source.check(ModelSpec, lambda: validate(ModelSpec, value))


def to_yaml(value: Any) -> str:
    """Plain values as YAML: small collections on one line, the rest in blocks, keys in order."""
    if isinstance(value, ModelSpec):
        value = value.dump()
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # keep the order in which a person would write it
    yaml.width = 100
    buffer = io.StringIO()
    yaml.dump(value, buffer)
    return buffer.getvalue()
