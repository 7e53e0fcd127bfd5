"""What cannot be imported is refused by name: families, config fields, weights."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest
import torch
import transformers

from archsearch.interop import from_transformers
from archsearch.interop.families import ALL, FAMILIES
from archsearch.interop.fields import HARMLESS
from archsearch.interop.importing import plan
from archsearch.interop.weights import gather, unfilled
from archsearch.spec import SpecError

from .sources import build as source_of
from .test_defaults import NEEDS

UNKNOWN = "llama config: unknown here, and may change what the model computes: "


def llama(**fields: Any) -> Any:
    small = {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2}
    return transformers.LlamaConfig(**{"vocab_size": 96, **small, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"attention_temperature": 2},
            f"{UNKNOWN}attention_temperature (2)",
        ),
        ({"hidden_act": "tanh"}, "llama config: hidden_act: 'tanh' is not supported"),
        (
            {"quantization_config": {"bits": 4}},
            f"{UNKNOWN}quantization_config (",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "llama config: rope_parameters: rope_type 'dynamic' is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "wavelength": 3}},
            "llama config: rope_parameters: 'wavelength' is unknown here",
        ),
        (
            {"num_key_value_heads": 2},
            "llama: as a spec, defaults.attention.kv_heads: 2 kv_heads do not divide",
        ),
    ],
    ids=["unknown", "activation", "quantised", "rope type", "rope key", "heads"],
)
def test_config(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as refused:
        plan(llama(**fields)).spec()
    assert str(refused.value).startswith(message)


def test_a_field_that_the_user_vouches_for() -> None:
    assert plan(llama(attention_temperature=2), ignore=["attention_temperature"]).spec().d_model == 48


def test_a_null_field_is_no_field() -> None:
    assert plan(llama(attention_temperature=None)).spec().hash == plan(llama()).spec().hash


def test_a_value_that_a_family_cannot_have() -> None:
    config = transformers.Mamba2Config(hidden_act="gelu")
    with pytest.raises(SpecError, match=r"^mamba2 config: hidden_act: expected 'silu', found 'gelu'$"):
        plan(config)


def test_a_kind_of_layer_that_a_family_does_not_have() -> None:
    config = transformers.NemotronHConfig(layers_block_type=["mamba", "mlp"])
    config.layers_block_type[1] = "conv"
    with pytest.raises(SpecError, match=r"^nemotron_h config: layer_types: layer 1 is 'conv'; expected"):
        plan(config)


def test_family() -> None:
    with pytest.raises(SpecError, match=r"^model_type 'gpt2' cannot be imported; expected one of: "):
        plan(transformers.GPT2Config())


def test_a_value_of_which_nothing_can_be_made() -> None:
    config = transformers.AutoConfig.for_model("qwen3_5_text", num_key_value_heads=-1)
    with pytest.raises(SpecError, match=r"^qwen3_5_text config: \w+: nothing can be made of"):
        plan(config)
    config = llama()
    config.rope_parameters = {"rope_type": "default"}
    with pytest.raises(SpecError, match=r"^llama config: rope_parameters: nothing can be made of a mapping"):
        plan(config)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_wrong_value_is_refused_or_is_none(model_type: str) -> None:
    """Whatever transformers lets through makes a legal spec or one of our messages."""
    given = transformers.AutoConfig.for_model(model_type, **NEEDS.get(model_type, {})).to_dict()
    draw = random.Random(model_type)
    for name in draw.sample(sorted(given), 12):
        wrong = given | {name: draw.choice([None, -1, 0, 3, 0.5, "x", [], {}, True, [1], ["x"]])}
        try:
            config = transformers.AutoConfig.for_model(**wrong)
        except Exception:
            continue  # transformers refuses it
        with suppress(SpecError):
            assert plan(config).spec().nodes


def test_all_unknown_fields_are_named_at_once() -> None:
    with pytest.raises(SpecError, match=r"computes: heat \(2\), wrap \('round'\)$"):
        plan(llama(heat=2, wrap="round"))


def test_what_checkpoints_say_besides_must_agree() -> None:
    besides = {"d_model": 768, "n_layer": 32, "ssm_cfg": {}, "rms_norm": True, "fused_add_norm": True}
    assert plan(transformers.MambaConfig(**besides)).spec().d_model == 768
    with pytest.raises(SpecError, match=r"^mamba config: rms_norm: expected true, found false$"):
        plan(transformers.MambaConfig(**besides | {"rms_norm": False}))


def test_every_ignored_field_has_a_reason() -> None:
    assert all(reason for family in ALL for reason in {**HARMLESS, **family.ignored}.values())


def test_a_weight_that_has_no_place() -> None:
    hf = transformers.LlamaForCausalLM(llama())
    hf.model.layers[1].mlp.register_parameter("temperature", torch.nn.Parameter(torch.ones(3)))
    with pytest.raises(SpecError, match=r"^weights: model.layers.1.mlp.temperature \(3\) has no place here$"):
        from_transformers(hf)


def test_a_weight_that_is_missing() -> None:
    hf = transformers.LlamaForCausalLM(llama())
    del hf.model.norm.weight
    with pytest.raises(SpecError, match=r"^weights: model.norm.weight is missing \(it goes to final_norm"):
        from_transformers(hf)


def test_a_weight_of_another_shape() -> None:
    hf = transformers.LlamaForCausalLM(llama())
    hf.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(39, 48))
    message = (
        r"^weights: layers.1.layer.up_proj.weight \(80 x 48\) cannot be made of "
        r"model.layers.0.mlp.gate_proj.weight \(40 x 48\), model.layers.0.mlp.up_proj.weight \(39 x 48\)$"
    )
    with pytest.raises(SpecError, match=message):
        from_transformers(hf)


def test_a_weight_of_ours_that_nothing_goes_to() -> None:
    blueprint, hf = plan(llama()), transformers.LlamaForCausalLM(llama())
    source = {k: v for k, v in hf.state_dict().items() if k != "model.embed_tokens.weight"}
    with pytest.raises(SpecError, match=r"^weights: nothing goes to embedding.weight$"):
        gather(blueprint.rules[1:], source, unfilled(blueprint.spec()))


def test_the_copy_shares_no_memory_with_its_source() -> None:
    hf = source_of({"config": "LlamaConfig", **llama().to_dict()})
    _, ours = from_transformers(hf)
    theirs = {tensor.data_ptr() for tensor in hf.state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in ours.state_dict().values()}
