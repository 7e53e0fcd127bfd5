"""YAML in, a spec or one line out: whatever the text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from contract.strategies import specs
from hypothesis import given, settings
from hypothesis import strategies as st

from archsearch.spec import SpecError, load_spec, parse_spec, to_yaml

GOOD = """\
name: a good one
tokenizer: bytes
d_model: 32
defaults: &all {attention: {heads: 4}}
layers:
  - repeat: 2
    layers: [mlp, attention: {window: 8}]
  - parallel:
      branches:
        - mamba2: {head_dim: 8}
        - [attention, mlp]
      merge: {gate: {by: token}}
"""

ODD = st.sampled_from(
    ["{", "}", "[", "]", ":", "&a ", "*a", "!!x ", "\t", "- ", "|", "#", "'", "<<: ", "\x00", "%"]
)


def refusal(text: str) -> str | None:
    """The message, or None for a legal spec; anything but a `SpecError` is a failure of the test."""
    try:
        parse_spec(text)
    except SpecError as error:
        return str(error)
    return None


@settings(max_examples=300)
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, len(GOOD)), st.integers(0, 9), ODD | st.text(max_size=4)), max_size=3
    )
)
def test_any_text_ends_in_a_spec_or_in_one_line(pieces: list[tuple[int, int, str]]) -> None:
    text = GOOD
    for at, removed, inserted in pieces:
        text = text[:at] + inserted + text[at + removed :]
    refused = refusal(text)
    if refused is not None:
        assert len(refused.splitlines()) == 1
        assert 1 <= int(refused.split(":")[1]) <= len(text.splitlines()) + 1


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 10**20),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just(["mlp", 3]),
    st.just({"mlp": {"hidden": 8}}),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


@settings(max_examples=300)
@given(value=specs(), where=st.randoms(use_true_random=False), junk=JUNK)
def test_any_wrong_value_is_refused_where_it_stands(value: dict[str, Any], where: Any, junk: Any) -> None:
    value = copy.deepcopy(value)
    path = where.choice(places(value))
    holder = value
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = junk
    refused = refusal(to_yaml(value))
    assert refused is None or len(refused.splitlines()) == 1


def message(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "spec.yaml")
    return str(caught.value)


def test_the_first_mistake_in_the_file_is_shown_and_all_are_kept() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("tokenizer: bytes\nd_model: no\nlayers:\n  - mlp: {hidden: 0}\nnam: x\n", "spec.yaml")
    assert str(caught.value) == "spec.yaml:2:1: d_model: expected a whole number, found 'no'"
    assert [issue.path for issue in caught.value.issues] == [
        ("d_model",),
        ("layers", 0, "mlp", "hidden"),
        ("nam",),
    ]


def test_columns_are_those_of_the_key() -> None:
    text = "tokenizer: bytes\nd_model: 32\nlayers: [mlp, attention: {heads: 4, windw: 3}]\n"
    assert message(text) == (
        "spec.yaml:3:37: layers.1.attention.windw: unknown key 'windw'; did you mean 'window'?"
    )


def test_a_value_that_came_through_an_alias_is_located_at_its_own_line() -> None:
    text = "tokenizer: bytes\nd_model: 32\ndefaults:\n  mlp: &m {hidden: -1}\nlayers:\n  - mlp: *m\n"
    assert message(text).startswith("spec.yaml:4:12: defaults.mlp.hidden: must be at least 1")


def test_a_branch_of_one_layer_is_located_with_and_without_its_list() -> None:
    for branch in ("mlp: {hiden: 3}", "[mlp: {hiden: 3}]"):
        text = "tokenizer: bytes\nd_model: 32\nlayers:\n  - parallel:\n      branches:\n        - mlp\n"
        assert message(text + f"        - {branch}\n").startswith("spec.yaml:7:")


def test_merge_keys_take_fields_from_mappings_and_lists_of_them() -> None:
    text = (
        "tokenizer: bytes\nd_model: 64\ndefaults:\n  mlp: &wide {hidden: 24}\n  attention: &four {heads: 4}\n"
        "layers:\n  - mlp: {<<: *wide, bias: true}\n  - attention: {<<: [*four, *four], window: 8}\n"
    )
    spec = parse_spec(text)
    mlp, attention = (node.layer.model_dump() for node in spec.nodes)
    assert (mlp["hidden"], mlp["bias"]) == (24, True)
    assert (attention["heads"], attention["window"]) == (4, 8)


def test_a_list_of_merged_mappings_counts_where_nothing_else_says_it() -> None:
    text = "tokenizer: bytes\nd_model: 32\nlayers:\n  - mlp: &m {hidden: 24}\n  - mlp: {<<: [*m]}\n"
    first, second = parse_spec(text).nodes
    assert first.layer == second.layer


def test_yaml_1_2_words_and_numbers() -> None:
    spec = parse_spec("name: no\ntokenizer: bytes\nd_model: 0x20\nnorm: {eps: 1e-3}\nlayers: [mlp]\n")
    assert (spec.name, spec.d_model, spec.norm.eps) == ("no", 32, 1e-3)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_spec(path).name == "a good one"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, phrase in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(SpecError, match=rf"^{path}:1:1: : {phrase}"):
            load_spec(path)


def test_the_arch_of_an_experiment_is_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text("arch:\n  tokenizer: bytes\n  d_model: 32\n  layers: [mlp, mlpp]\n")
    with pytest.raises(SpecError, match=r":4:17: arch.layers.1: unknown layer 'mlpp'; did you mean 'mlp'\?"):
        load_spec(path)


@pytest.mark.parametrize("fields", ["{repeat: 4096, layers: [mlp]}", "{pattern: '" + "-" * 4096 + "'}"])
def test_the_largest_stack(fields: str) -> None:
    head = "tokenizer: bytes\nd_model: 32\nlayers:\n"
    assert len(parse_spec(f"{head}  - {fields}\n").nodes) == 4096
    assert "more than 4,096 layers" in message(f"{head}  - {fields}\n  - mlp\n")
