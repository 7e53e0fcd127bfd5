"""A transformers config that notes what is read of it: what nobody reads may matter, and is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from archsearch.spec.errors import SpecError, nearest, quoted, shown

T = TypeVar("T")

HARMLESS: dict[str, str] = {
    **dict.fromkeys(
        ("model_type", "architectures", "_name_or_path", "transformers_version", "auto_map"), "a name"
    ),
    **dict.fromkeys(("dtype", "keys_to_ignore_at_inference"), "how the weights are kept, which they say"),
    **dict.fromkeys(
        ("output_hidden_states", "output_attentions", "output_router_logits", "return_dict", "use_cache"),
        "what a call returns",
    ),
    **dict.fromkeys(("num_logits_to_keep", "tie_last_hidden_states"), "what a call returns"),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id"), "the tokenizer's"),
    **dict.fromkeys(("id2label", "label2id", "num_labels", "problem_type"), "for classifiers"),
    **dict.fromkeys(
        ("initializer_range", "attention_dropout", "hidden_dropout", "resid_dropout", "embd_pdrop"),
        "for training",
    ),
    **dict.fromkeys(("router_aux_loss_coef", "z_loss_coefficient"), "for training"),
    **dict.fromkeys(("rescale_prenorm_residual", "residual_in_fp32"), "initial weights; rounding"),
    **dict.fromkeys(
        ("chunk_size", "mamba_chunk_size", "chunk_size_feed_forward", "pretraining_tp"),
        "how it is computed, not what",
    ),
    "archsearch_spec": "compared with what the other fields say",
    "max_position_embeddings": "the length of a table; rope scaling reads it where it means more",
}
"""Fields of any family that do not change the function, and why. A family adds its own."""


class Fields:
    """A normalised transformers config; `finish` refuses every field that was neither read nor harmless.

    A field is read as an attribute. Names that `attribute_map` lists are the fields they stand for.
    ignored: fields of this family that change nothing (or nothing here), each with the reason.
    """

    def __init__(self, config: Any, ignored: Mapping[str, str] | None = None):
        self._config = config
        self._known = {self._own(name) for name in (*HARMLESS, *(ignored or {}))}
        self._last = ""

    def _own(self, name: str) -> str:
        """The name under which this config keeps the field."""
        return type(self._config).attribute_map.get(name, name)

    def __getattr__(self, name: str) -> Any:
        self._known.add(self._own(name))
        self._last = name
        try:
            return getattr(self._config, name)
        except AttributeError:
            self.refuse(name, "is missing")

    def get(self, name: str, default: Any = None) -> Any:
        """A field that not every config of the family has."""
        self._known.add(name)
        self._last = name
        return getattr(self._config, name, default)

    def needed(self, name: str) -> Any:
        """The field, which must not be null."""
        value = getattr(self, name)
        if value is None:
            self.refuse(name, "is null")
        return value

    def only(self, name: str, *allowed: Any) -> Any:
        """The field, which must be one of these values."""
        value = getattr(self, name)
        if value not in allowed:
            self.refuse(name, f"expected {' or '.join(map(shown, allowed))}, found {shown(value)}")
        return value

    def agree(self, **expected: Any) -> None:
        """Fields that some checkpoints give and transformers does not read: those that are there say this."""
        for name, value in expected.items():
            if self.get(name) not in (None, value):
                self.only(name, value)

    def word(self, name: str, words: Mapping[Any, T]) -> T:
        """What the field's value is called here."""
        value = getattr(self, name)
        if value not in words:
            self.refuse(name, f"{shown(value)} is not supported{nearest(value, map(str, words))}")
        return words[value]

    def each(
        self, name: str, kinds: Mapping[str, Callable[..., T]]
    ) -> Iterator[tuple[int, Callable[..., T]]]:
        """The field, a list of words with one a layer: for each its index and what makes its part.

        kinds: word -> function of these fields and the layer's name.
        """
        words = getattr(self, name) or ()
        if len(words) != self.num_hidden_layers:
            self.refuse(name, f"{len(words)} words for {self.num_hidden_layers} layers")
        for i, kind in enumerate(words):
            if kind not in kinds:
                self.refuse(name, f"layer {i} is {shown(kind)}; expected one of: {quoted(kinds)}")
            yield i, kinds[kind]
        self.understood(*(kinds[word] for word in kinds.keys() - set(words)))

    def understood(self, *kinds: Callable[..., Any]) -> None:
        """What these kinds of layers read is no unknown field, also where the model has none of them."""
        for make in kinds:
            with suppress(SpecError):
                make(self, "")

    def refuse(self, name: str, why: str) -> NoReturn:
        raise SpecError(f"{self._config.model_type} config: {name}: {why}")

    def unusable(self, error: Exception) -> NoReturn:
        """Refuse the field that was read last, of which, or of one read before, nothing could be made."""
        value = shown(getattr(self._config, self._last, None))
        self.refuse(self._last, f"nothing can be made of {value}, or of a field beside it ({error})")

    def finish(self, ignore: Collection[str] = ()) -> None:
        """Refuse what is left. ignore: names that the user vouches for. A null field is as good as none."""
        left = [
            f"{name} ({shown(value)})"
            for name, value in self._config.to_dict().items()
            if value is not None and name not in self._known and name not in ignore
        ]
        if left:
            raise SpecError(
                f"{self._config.model_type} config: unknown here, and may change what the model computes: "
                f"{quoted(left)}"
            )
