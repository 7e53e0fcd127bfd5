"""Exports as classes of transformers: the same function both ways round, or a reason why not.

The bars are those of the import: see `test_parity`.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from archsearch.compiler import LanguageModel, compile_model
from archsearch.interop import from_transformers, native, to_transformers
from archsearch.interop.families import FAMILIES as TABLES
from archsearch.interop.function import INITIAL
from archsearch.interop.importing import plan
from archsearch.interop.targets import TARGETS, Target
from archsearch.spec import ModelSpec, SpecError, load_spec, parse_spec
from archsearch.spec.entries import layer_kinds

from .sources import FAMILIES, lively, logits, perturb, self_noise, source
from .test_parity import RELATIVE, TAIL, TIE, continued_by_transformers, shortfall, tokens


def target(model_type: str) -> Target:
    return next(target for target in TARGETS if target.model_type == model_type)


def config_of(name: str, seed: int) -> Any:
    fields = FAMILIES[name](random.Random(f"{name} {seed}"))
    return getattr(transformers, fields.pop("config"))(**fields)


@pytest.fixture(scope="module", params=FAMILIES)
def trip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A model of transformers, its import, and what transformers loads of that one's export to its family."""
    hf = source(request.param, 0)
    _, ours = from_transformers(hf)
    folder = tmp_path_factory.mktemp(request.param)
    native.write_native(ours, native.fit(ours.spec, target(hf.config.model_type)), folder)
    return hf, ours, AutoModelForCausalLM.from_pretrained(folder)


def test_back_where_it_came_from(trip: tuple[Any, ...]) -> None:
    """The same class with the same weights, to the bit, and the same logits: `test_parity` has the rest."""
    hf, _, again = trip
    assert type(again) is type(hf)
    before, after = dict(hf.named_parameters()), dict(again.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected, found = logits(hf, tokens(2, 20)), logits(again, tokens(2, 20))
    assert (found - expected).abs().max() <= RELATIVE * expected.abs().max()


def test_every_family_has_a_target() -> None:
    assert {target.model_type for target in TARGETS} == TABLES.keys()


def check_logits(hf: Any, ours: LanguageModel, times: float = TAIL) -> float:
    """The largest difference over the largest logit; no more than so many times the model's own noise."""
    expected = logits(hf, tokens(2, 48))
    with torch.no_grad():
        difference = (ours(tokens(2, 48)) - expected).abs().max().item()
    assert difference <= times * self_noise(hf, tokens(2, 48))[0]
    return difference / expected.abs().max().item()


def check_greedy_text(hf: Any, ours: LanguageModel, varied: bool = True) -> None:
    ids_bl = tokens(2, 11)
    hf.generation_config.eos_token_id = None
    with torch.no_grad():
        text_bl = continued_by_transformers(hf, ids_bl)
        assert shortfall(ours, ids_bl, text_bl) <= TIE
    assert not varied or len(text_bl[0].unique()) > 2, "a model that repeats itself shows nothing"


def test_imported_again(trip: tuple[Any, ...]) -> None:
    _, ours, again = trip
    spec, model = from_transformers(again)
    assert spec.hash == ours.spec.hash
    assert spec.dump() == ours.spec.dump()
    kept, weights = model.state_dict(), ours.state_dict()
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


GRANITE = """
d_model: 32
tokenizer: bytes
layers:
- mamba2: {head_dim: 8, d_state: 8, dt_min: 0.002}
- mlp: {hidden: 24}
- attention: {heads: 4, kv_heads: 2, head_dim: 12}
- mlp: {hidden: 24}
"""
NEMOTRON = """
d_model: 32
tokenizer: bytes
defaults: {mlp: {activation: relu2}, attention: {rope: none, heads: 4}, mamba2: {head_dim: 8, d_state: 8}}
pattern: M-M*-M
"""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GRANITE, "GraniteMoeHybridForCausalLM"),
        (NEMOTRON, "NemotronHForCausalLM"),
        (
            "d_model: 32\ntokenizer: bytes\ndefaults: {mamba2: {head_dim: 8}}\npattern: MM",
            "Mamba2ForCausalLM",
        ),
        ("d_model: 32\ntokenizer: bytes\npattern: SS", "MambaForCausalLM"),
        ("d_model: 32\ntokenizer: bytes\npattern: '*-*-'", "LlamaForCausalLM"),
    ],
)
def test_own_models(text: str, name: str, tmp_path: Path) -> None:
    """Models that were born here; transformers' fields of initial weights do not hold all of theirs."""
    ours = built(parse_spec(text))
    assert to_transformers(ours, tmp_path / "out") == name
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert check_logits(again, ours) <= RELATIVE
    spec, _ = from_transformers(again)
    assert spec.dump() == ours.spec.dump()
    to_transformers(lively(ours), tmp_path / "lively")
    check_greedy_text(AutoModelForCausalLM.from_pretrained(tmp_path / "lively"), ours)


def built(spec: ModelSpec, seed: int = 0) -> LanguageModel:
    perturb(model := compile_model(spec, seed=seed), torch.Generator().manual_seed(seed))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nemotron_h_8b", "NemotronHForCausalLM"),
        ("nemotron_3_nano_30b_a3b", "NemotronHForCausalLM"),
        ("granite_4_0_h_tiny", "GraniteMoeHybridForCausalLM"),
        ("olmo_hybrid_7b", "OlmoHybridForCausalLM"),
        ("lfm2_8b_a1b", "Lfm2MoeForCausalLM"),
        ("falcon_h1_0_5b", "FalconH1ForCausalLM"),
        ("qwen3_next_80b_a3b", "Qwen3NextForCausalLM"),
        ("llama_3_1_8b", "LlamaForCausalLM"),
        ("zamba2_7b", "Zamba2ForCausalLM"),
        ("samba_1_3b", None),
        ("hymba_1_5b", None),
    ],
)
def test_published_models(name: str, found: str | None) -> None:
    match, _ = native.find(load_spec(f"specs/published/{name}.yaml"))
    assert (match and match.name) == found


@pytest.mark.parametrize(
    ("change", "model_type", "why"),
    [
        (("kv_heads: 2", "window: 5"), "granitemoehybrid", "layer 1 is 'sliding_attention'"),
        (("kv_heads: 2", "qk_norm: head"), "granitemoehybrid", "layers.2: attention: qk_norm head, where it"),
        (
            ("tokenizer: bytes", "vocab_size: 9\nmeta_tokens: 2"),
            "granitemoehybrid",
            "meta_tokens 2, where it",
        ),
        (
            ("dt_min: 0.002", "dt_limit: [0.1, 0.9]"),
            "granitemoehybrid",
            "layers.0: dt_limit, which it does not",
        ),
        (("dt_min: 0.002", "expand: 1.5"), "granitemoehybrid", "mamba_n_heads must divide mamba_expand"),
        (("- mlp: {hidden: 24}\n- att", "- att"), "granitemoehybrid", "3 layers do not come in pairs"),
        (
            ("- mlp: {hidden: 24}\n- att", "- mamba2: {head_dim: 8}\n- att"),
            "bamba",
            "layers.0: mamba2 and mamba2",
        ),
        (
            ("hidden: 24}\n- att", "hidden: 16}\n- att"),
            "granitemoehybrid",
            "layers.3: mlp: hidden 24, where it has 16",
        ),
        (("kv_heads: 2", "scale: 0.5"), "bamba", "layers.2: attention: scale 0.5, where it has 0.288"),
        (
            ("kv_heads: 2", "rope: {interleaved: true}"),
            "granitemoehybrid",
            "interleaved true, where it has false",
        ),
        (("kv_heads: 2", "rope: {fraction: 0.5}"), "granitemoehybrid", "does not rotate a part of each head"),
        (("d_model", "embedding: {positions: {learned: 64}}\nd_model"), "bamba", "embedding: positions"),
    ],
)
def test_reasons(change: tuple[str, str], model_type: str, why: str) -> None:
    """The first thing that differs, by its place."""
    assert change[0] in GRANITE
    spec = parse_spec(GRANITE.replace(*change, 1))
    with pytest.raises(native.Mismatch) as error:
        native.fit(spec, target(model_type))
    assert why in str(error.value)


@pytest.mark.parametrize("pattern", ["MM", "MEM-", "GG", "-S-S"])
def test_caches_without_attention_are_not_asked_for(pattern: str) -> None:
    """transformers' hybrids read the length of a cache off an attention layer."""
    spec = parse_spec(
        f"d_model: 32\ntokenizer: bytes\ndefaults: {{mamba2: {{head_dim: 8}}}}\npattern: {pattern}"
    )
    match, _ = native.find(spec)
    assert match is None or match.config.model_type in ("mamba2", "mamba")


def test_notes(tmp_path: Path) -> None:
    """The least step size of Nemotron-H as it is published: its own class leaves it when it decodes."""
    spec = parse_spec(NEMOTRON.replace("d_state: 8", "d_state: 8, dt_limit: [0.001, .inf]"))
    match, _ = native.find(spec)
    assert match is not None
    assert match.notes == ("transformers holds step sizes above 0.001, but not when it decodes",)
    assert not native.find(parse_spec(NEMOTRON))[0].notes
    ours = built(spec)
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if "dt_bias" in name:
                weight.fill_(-12)
    to_transformers(ours, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert check_logits(again, ours) <= RELATIVE
    ids_bl = tokens(1, 5)
    with torch.no_grad():
        stepped = again(ids_bl[:, 4:], past_key_values=again(ids_bl[:, :4], use_cache=True).past_key_values)
        assert (stepped.logits[0, 0] - again(ids_bl).logits[0, -1]).abs().max() > 2e-5


def test_a_config_that_was_changed_is_believed(tmp_path: Path) -> None:
    """The spec that goes along adds what the fields cannot say; it does not overrule them."""
    to_transformers(built(parse_spec(GRANITE)), tmp_path / "out")
    file = tmp_path / "out" / "config.json"
    fields = json.loads(file.read_text())
    fields["residual_multiplier"] = 0.5
    file.write_text(json.dumps(fields))
    spec = plan(AutoConfig.from_pretrained(tmp_path / "out")).spec()
    assert spec.scales.residual == 0.5
    assert spec.tokenizer is None


def test_folders_that_hold_something_are_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(SpecError, match="is there already"):
        to_transformers(built(parse_spec(GRANITE)), tmp_path)
    assert (tmp_path / "kept").read_text() == "mine"


def test_initial_fields_change_no_function() -> None:
    """What the comparison of specs leaves out: with the same weights, the same logits to the bit."""
    other = {"dt_min": 0.05, "dt_max": 0.06, "dt_floor": 0.01, "dt_init": "constant"}
    other |= {"A_init": [0.5, 0.7], "a_init": [0.1, 0.2], "balance": 0.5, "bias_rate": 0.1}
    assert other.keys() == INITIAL
    small = {"mamba2": {"head_dim": 8}, "gated_deltanet": {"key_dim": 4, "key_heads": 2}, "kda": {"heads": 2}}
    seen = set()
    for kind, layer in layer_kinds().items():
        fields = {name: value for name, value in other.items() if name in layer.model_fields}
        seen |= fields.keys()
        if kind == "moe":
            small["moe"] = {"selection_bias": True}
        values = [small.get(kind, {}), {**small.get(kind, {}), **fields}]
        specs = [
            ModelSpec.model_validate({"vocab_size": 96, "d_model": 32, "layers": [{kind: given}]})
            for given in values
            if fields
        ]
        if not specs:
            continue
        first, second = (compile_model(spec).eval() for spec in specs)
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            assert torch.equal(first(tokens(1, 9)), second(tokens(1, 9))), kind
        assert specs[0].hash != specs[1].hash
    assert seen == INITIAL


@pytest.mark.parametrize("seed", range(5))
def test_no_altered_model_is_exported_wrongly(seed: int, tmp_path: Path) -> None:
    """Whatever a spec of a family is changed to: if a class is found for it, it computes the same."""
    draw = random.Random(seed)
    for name in draw.sample(list(FAMILIES), len(FAMILIES)):
        values = plan(config_of(name, seed)).spec().resolved()
        spec = altered(values, draw)
        match = native.find(spec)[0] if spec is not None else None
        if spec is None or match is None:
            continue
        ours = lively(built(spec, seed))
        to_transformers(ours, tmp_path / "out")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        # Weights so large are ill-conditioned; another function is off by far more than some noise.
        check_logits(again, ours, times=10)
        if not match.notes:
            # What an altered model says is nobody's choice: it may well repeat itself.
            check_greedy_text(again, ours, varied=False)
        assert from_transformers(again)[0].hash == spec.hash
        return


CHOICES: dict[str, list[Any]] = {
    "rope": [None, {"theta": 500.0}, {"theta": 1e4, "fraction": 0.5}, {"theta": 1e4, "interleaved": True}],
    "window": [None, 5],
    "qk_norm": [None, "head", "full"],
    "activation": ["swiglu", "geglu", "geglu_tanh", "relu2", "silu"],
    "gated_norm": ["after", "before", "none"],
    "norm": ["pre", "post", "sandwich"],
    "gate": [None, "head", "channel"],
    "softcap": [None, 2.0],
}


def altered(values: dict[str, Any], draw: random.Random) -> ModelSpec | None:
    """A field of a kind of layer, or of the trunk, is something else; None where that is no model."""
    kinds = [next(iter(entry)) for entry in values["layers"] if isinstance(next(iter(entry.values())), dict)]
    kind = draw.choice(kinds)
    entries = [entry[kind] for entry in values["layers"] if kind in entry]
    name = draw.choice([name for name in entries[0] if name not in ("branches", "layers", "merge", "id")])
    old = entries[0][name]
    if name in CHOICES:
        new: Any = draw.choice(CHOICES[name])
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int | float):
        new = old * 2
    else:
        return None
    for fields in entries if draw.random() < 0.7 else entries[:1]:
        fields[name] = new
    if draw.random() < 0.3:
        values["scales"] = {**values.get("scales", {}), draw.choice(["embedding", "residual", "logits"]): 0.7}
    try:
        return ModelSpec.model_validate(values)
    except ValueError:
        return None
