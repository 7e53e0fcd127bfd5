"""Our tokenizers as transformers' files: the same ids for the same text."""

from __future__ import annotations

from pathlib import Path

from archsearch.spec.vocabulary import BYTES, END_OF_DOCUMENT, TOKENIZERS

END = chr(END_OF_DOCUMENT)
"""The end of a document is byte 0, and so text that spells it out is that one byte."""


def write_tokenizer(name: str, folder: Path, longest: int | None = None) -> None:
    """tokenizer.json and tokenizer_config.json of the tokenizer that specs call `name`.

    longest: tokens that the model can read, where there is a limit.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    # Symbols of recall tasks: no text merges into them, and they decode as they are written.
    vocabulary |= {f"⟨{id - BYTES}⟩": id for id in range(BYTES, TOKENIZERS[name])}
    vocabulary[END] = vocabulary.pop(_letters()[END_OF_DOCUMENT])
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **({"model_max_length": longest} if longest else {}),
    ).save_pretrained(folder)


def _letters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's): printable ones for
    themselves, the others, in order, for those from U+0100 on."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(BYTES)]
