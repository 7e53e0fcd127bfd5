"""Sources of training sequences: the n-th sequence is a pure function of (spec, split, seed, n).

Shape suffixes: b = sequence, l = position within it.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from archsearch.data.corpora import load_domain
from archsearch.data.facts import pack_documents, write_document
from archsearch.data.files import load_text
from archsearch.data.mqar import generate_mqar
from archsearch.data.random_streams import named_generator
from archsearch.data.spec import DomainSpec, FactsSpec, MqarSpec, SourceSpec, TextSpec
from archsearch.data.splitting import check_split

Ids = npt.NDArray[np.int64]

_MQAR_BLOCK = 256


class Source(Protocol):
    """An endless, randomly accessible list of sequences of one length."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        ...

    def sequences(self, start: int, count: int) -> tuple[Ids, Ids]:
        """Inputs and targets of sequences start .. start + count - 1, both int64 (count, length).

        targets[b, l] is what should follow inputs[b, : l + 1], or IGNORE where nothing is asked.
        """
        ...

    def epochs(self, count: int) -> float:
        """How often the first `count` sequences have gone through the underlying text; 0 if it never ends."""
        ...


class TextSource:
    """Windows of a token stream: each epoch cuts it anew at a random offset and shuffles the windows."""

    def __init__(self, name: str, tokens: npt.NDArray[np.uint8], length: int, seed: int) -> None:
        if len(tokens) < 2 * length:
            raise ValueError(
                f"source {name!r}: {len(tokens)} tokens are too few for windows of {length}; "
                f"expected at least {2 * length}"
            )
        self.length = length
        self.windows_per_epoch = (len(tokens) - length) // length
        self._tokens = tokens
        self._epoch = lru_cache(maxsize=4)(lambda epoch: self._window_starts(seed, epoch))

    def sequences(self, start: int, count: int) -> tuple[Ids, Ids]:
        """Next-token windows of `length`; see Source."""
        n_b = np.arange(start, start + count)
        epoch_b, window_b = np.divmod(n_b, self.windows_per_epoch)
        start_b = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epoch_b):
            here_b = epoch_b == epoch
            start_b[here_b] = self._epoch(int(epoch))[window_b[here_b]]
        tokens_bl = self._tokens[start_b[:, None] + np.arange(self.length + 1)].astype(np.int64)
        return tokens_bl[:, :-1], tokens_bl[:, 1:]

    def epochs(self, count: int) -> float:
        """Passes through the text, counted in windows; see Source."""
        return count / self.windows_per_epoch

    def _window_starts(self, seed: int, epoch: int) -> Ids:
        generator = named_generator("windows", seed, epoch)
        offset = generator.integers(0, self.length)
        return offset + self.length * generator.permutation(self.windows_per_epoch)


class MqarSource:
    """Fresh MQAR sequences, generated in blocks so that numpy works on many at once."""

    def __init__(self, spec: MqarSpec, split: str, seed: int) -> None:
        self.length = spec.length
        self._spec = spec
        self._stream = ("mqar", split, seed, spec.model_dump_json())
        self._block = lru_cache(maxsize=4)(self._generate_block)

    def sequences(self, start: int, count: int) -> tuple[Ids, Ids]:
        """Symbols, and the values asked for; see Source."""
        if count == 0:
            empty = np.empty((0, self.length), dtype=np.int64)
            return empty, empty
        first, last = start // _MQAR_BLOCK, (start + count - 1) // _MQAR_BLOCK
        blocks = [self._block(block) for block in range(first, last + 1)]
        skip = start - first * _MQAR_BLOCK
        inputs_bl = np.concatenate([inputs for inputs, _ in blocks])[skip : skip + count]
        targets_bl = np.concatenate([targets for _, targets in blocks])[skip : skip + count]
        return inputs_bl, targets_bl

    def epochs(self, count: int) -> float:
        """Always 0: no sequence is ever drawn twice."""
        return 0.0

    def _generate_block(self, block: int) -> tuple[Ids, Ids]:
        batch = generate_mqar(self._spec, _MQAR_BLOCK, named_generator(*self._stream, block))
        return batch.inputs_bl, batch.targets_bl


class FactsSource:
    """Fresh documents of facts; every byte bears the next-byte loss, as in any other text."""

    def __init__(self, spec: FactsSpec, wordings: str, split: str, seed: int) -> None:
        self.length = spec.length
        self._spec = spec
        self._wordings = wordings
        self._stream = (split, seed)

    def sequences(self, start: int, count: int) -> tuple[Ids, Ids]:
        """Documents start .. start + count - 1, padded; see Source and `pack_documents`."""
        return pack_documents(
            [
                write_document(self._spec, self._stream, n, self._wordings)
                for n in range(start, start + count)
            ],
            self.length,
        )

    def epochs(self, count: int) -> float:
        """Always 0: no document is ever drawn twice."""
        return 0.0


def open_source(name: str, spec: SourceSpec, *, context: int, seed: int, split: str = "train") -> Source:
    """The source that `spec` describes; text comes in windows of `context`, recall in its own length.

    Raises ValueError where local text cannot be read or is too short; `name` is what messages call it.
    """
    check_split(split)
    fields = spec.fields
    if isinstance(fields, MqarSpec):
        return MqarSource(fields, split, seed)
    if isinstance(fields, FactsSpec):
        return FactsSource(fields, spec.name, split, seed)
    return TextSource(name, text_tokens(fields, split), context, seed)


def text_tokens(spec: DomainSpec | TextSpec, split: str) -> npt.NDArray[np.uint8]:
    """Token ids of a text source's split, uint8 (tokens,)."""
    return load_domain(spec.name, split) if isinstance(spec, DomainSpec) else load_text(spec, split)
