"""Export as a class of transformers, where one computes the same function.

A target proposes a config for a spec. The family's import table reads it back, and only where the spec that
it gives is the same as the one at hand is the class used: one table says both ways what a family is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from archsearch.compiler.model import LanguageModel
from archsearch.interop.blueprint import Blueprint
from archsearch.interop.families import FAMILIES
from archsearch.interop.function import TINY, differences
from archsearch.interop.modules import Unallocated
from archsearch.interop.names import LAYERS, TRUNK, UNSAID, Config
from archsearch.interop.rules import Rules
from archsearch.interop.targets import TARGETS, Layout, Mismatch, Target
from archsearch.spec.errors import SpecError
from archsearch.spec.model import ModelSpec

PUBLISHED_LEAST_STEP = 1e-3


@dataclasses.dataclass(frozen=True)
class Match:
    """A class of transformers that computes what the spec says, and the config under which it does.

    notes: what is not quite so.
    """

    config: Any
    blueprint: Blueprint
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return _class_of(self.config).__name__


def find(spec: ModelSpec, itemsize: int = 4) -> tuple[Match | None, dict[str, str]]:
    """The first target that fits; and by their model types why those before it do not.

    itemsize: bytes of a weight.
    """
    reasons: dict[str, str] = {}
    for target in TARGETS:
        try:
            return fit(spec, target, itemsize), reasons
        except Mismatch as mismatch:
            reasons[target.model_type] = str(mismatch)
    return None, reasons


def fit(spec: ModelSpec, target: Target, itemsize: int = 4) -> Match:
    """Raises `Mismatch`, which names the first thing that differs."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    layout = _layout(spec, target, itemsize)
    try:
        config = AutoConfig.for_model(target.model_type, **_proposal(layout, target))
        blueprint = FAMILIES[target.model_type].blueprint(config)
        theirs = blueprint.spec()
    except (SpecError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise Mismatch(" ".join(str(error).split())) from None
    difference = next(differences(spec, theirs), None)
    if difference is not None:
        raise Mismatch(difference)
    return Match(config, blueprint, tuple(_notes(layout)))


def _layout(spec: ModelSpec, target: Target, itemsize: int) -> Layout:
    nodes = [inner for node in spec.nodes for inner in node.walk()]
    for node in nodes:
        if not target.shares and (node.owner is not None or node.lora is not None):
            raise Mismatch(f"{node.path}: no layer of it is used twice")
        if node.kind not in target.kinds:
            raise Mismatch(f"{node.path}: it has no {node.kind}")
        layer: Any = node.layer
        if node.kind == "mamba2" and not _decoded(layer):
            raise Mismatch(f"{node.path}: dt_limit, which it does not keep to when it decodes")
        widths = (layer.hidden, layer.latent or spec.d_model) if node.kind == "moe" else ()
        if any(width * itemsize % 16 for width in widths):
            raise Mismatch(f"{node.path}: its experts' matrices need rows of a multiple of 16 bytes")
    kinds = {node.kind for node in nodes}
    attending = kinds & {"attention", "mla"}
    if target.mixed and not (attending and kinds - attending - {"mlp", "moe"}):
        raise Mismatch("its cache needs both attention and recurrent layers")
    if not target.pair:
        return Layout(spec, [(node,) for node in spec.nodes])
    if len(spec.nodes) % 2:
        raise Mismatch(f"{len(spec.nodes)} layers do not come in pairs of a mixer and an MLP")
    units = list(zip(spec.nodes[::2], spec.nodes[1::2], strict=True))
    for mixer, channel in units:
        if mixer.layer.family == "channel" or channel.layer.family != "channel":
            found = f"{mixer.kind} and {channel.kind}"
            raise Mismatch(f"{mixer.path}: {found}, where it has a mixer and an MLP in turn")
    return Layout(spec, [*units])


def _decoded(mamba2: Any) -> bool:
    """transformers bounds step sizes over whole sequences, but not when it decodes. The least step size of
    Nemotron-H and Zamba2 as they are published is let through, with a note."""
    low, high = mamba2.dt_limit
    return low <= PUBLISHED_LEAST_STEP and high == math.inf


def _notes(layout: Layout) -> Iterator[str]:
    mamba2 = layout.first("mamba2")
    if mamba2 is not None and mamba2.dt_limit[0] > TINY:
        yield f"transformers holds step sizes above {mamba2.dt_limit[0]:g}, but not when it decodes"


def _proposal(layout: Layout, target: Target) -> Config:
    """Fields of the target's config, as far as it has them."""
    from transformers import CONFIG_MAPPING

    spec = layout.spec
    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[target.model_type])}
    found = {name: read(spec, spec) for name, read in TRUNK.items() if name in known}
    found["num_hidden_layers"] = len(layout.units)
    for kind in target.kinds:
        layer = layout.first(kind)
        for name, read in LAYERS.get(kind, {}).items() if layer is not None else ():
            if name in known and name not in found:
                found[name] = read(layer, spec)
    found = {name: value for name, value in found.items() if value is not UNSAID}
    for name in known & {"layer_types", "layers_block_type"}:
        found[name] = layout.words()
    found |= {name: None for name in known & {"pad_token_id", "bos_token_id", "eos_token_id"}}
    attention = layout.first("attention")
    if attention is not None and attention.heads * attention.head_dim != spec.d_model:
        found["head_dim"] = attention.head_dim
    return found | target.extra(layout)


def write_native(model: LanguageModel, match: Match, folder: Path) -> None:
    """config.json, with the spec in it for those who import it again, and the weights."""
    with Unallocated():
        theirs = _class_of(match.config)(match.config)
    found = scatter(match.blueprint.rules, model.state_dict(), theirs.state_dict())
    report = theirs.load_state_dict(found, strict=False, assign=True)
    theirs.tie_weights()
    empty = [name for name, tensor in theirs.state_dict().items() if tensor.is_meta]
    assert not empty, empty
    assert not report.unexpected_keys, report.unexpected_keys
    theirs.config.archsearch_spec = model.spec.dump()
    theirs.config.dtype = model.embedding.weight.dtype
    theirs.save_pretrained(folder)


def scatter(rules: Rules, ours: dict[str, Tensor], shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """The import's rules run backwards: our tensors -> theirs, whose shapes are given."""
    found: dict[str, Tensor] = {}
    for rule in rules:
        if rule.ours is None:
            continue  # theirs has it from its config
        apart = rule.join.apart(ours[rule.ours], [shapes[name].shape for name in rule.theirs])
        found |= {name: tensor.contiguous() for name, tensor in zip(rule.theirs, apart, strict=True)}
    return found


def _class_of(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(config)]
