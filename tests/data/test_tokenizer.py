import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.data.tokenizer import ByteTokenizer, get_tokenizer

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_text_survives_a_round_trip_as_its_utf8_bytes(text: str) -> None:
    ids = ByteTokenizer().encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == list(text.encode())
    assert ByteTokenizer().decode(ids) == text


def test_symbols_and_broken_utf8_are_shown() -> None:
    tokenizer = get_tokenizer("bytes")
    assert tokenizer.vocab_size == 384
    assert tokenizer.decode([256, 72, 105, 383, 0xC3, 257]) == "⟨0⟩Hi⟨127⟩�⟨1⟩"


def test_a_multibyte_character_is_not_joined_across_a_symbol() -> None:
    assert ByteTokenizer().decode([0xC3, 256, 0xA9]) == "�⟨0⟩�"


@pytest.mark.parametrize("ids", [[384], [-1]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"expected ids within 0\.\.383"):
        ByteTokenizer().decode(ids)


def test_unknown_tokenizer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'bytes'"):
        get_tokenizer("byte")
