"""Multi-query associative recall, the synthetic task of Arora et al. 2023 (arXiv:2312.04927).

The layout is that of the zoology repository: K key-value pairs (2K tokens), then each key once more, as a
question, at an even distance drawn without replacement from a power law; every other position holds a random
symbol. The target at a question is the key's value; no other position bears a loss.

Shape suffixes: b = sequence, l = position, k = pair, s = symbol.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from archsearch.data.random_streams import IGNORE
from archsearch.data.spec import MqarSpec
from archsearch.spec.vocabulary import FIRST_SYMBOL

Ids = npt.NDArray[np.int64]


class MqarBatch(NamedTuple):
    """Sequences and targets, int64 (count, length), and where each pair is asked, int64 (count, pairs)."""

    inputs_bl: Ids
    targets_bl: Ids
    question_at_bk: Ids


def generate_mqar(spec: MqarSpec, count: int, generator: np.random.Generator) -> MqarBatch:
    """`count` sequences of ids within FIRST_SYMBOL .. FIRST_SYMBOL + symbols - 1.

    Unlike zoology's, the random symbols never equal a key that was bound in the same sequence: a stray copy
    of a key, followed by a stray symbol, would read as a second, contradicting binding.
    """
    pairs, length, half = spec.pairs, spec.length, spec.symbols // 2
    order_bs = np.argsort(generator.random((count, half)), axis=1)
    keys_bk = order_bs[:, :pairs]
    values_bk = half + np.argsort(generator.random((count, half)), axis=1)[:, :pairs]

    free_bs = np.concatenate(
        [order_bs[:, pairs:], np.broadcast_to(np.arange(half, 2 * half), (count, half))], axis=1
    )
    drawn_bl = generator.integers(0, free_bs.shape[1], size=(count, length))
    symbols_bl = np.take_along_axis(free_bs, drawn_bl, axis=1)

    symbols_bl[:, 0 : 2 * pairs : 2] = keys_bk
    symbols_bl[:, 1 : 2 * pairs : 2] = values_bk
    question_at_bk = 2 * pairs + 2 * _power_law_slots(spec, count, generator)
    np.put_along_axis(symbols_bl, question_at_bk, keys_bk, axis=1)
    targets_bl = np.full((count, length), IGNORE, dtype=np.int64)
    np.put_along_axis(targets_bl, question_at_bk, values_bk + FIRST_SYMBOL, axis=1)
    return MqarBatch(symbols_bl + FIRST_SYMBOL, targets_bl, question_at_bk)


def _power_law_slots(spec: MqarSpec, count: int, generator: np.random.Generator) -> Ids:
    """Distinct slots (count, pairs), P(slot g) proportional to (g + 1)^(power - 1), in the order drawn.

    An exponential race: ordering slots by Exp(1) / weight is drawing them one by one without replacement.
    """
    slots = (spec.length - 2 * spec.pairs) // 2
    weight_g = np.arange(1, slots + 1) ** (spec.power - 1.0)
    race_bg = generator.standard_exponential((count, slots)) / weight_g
    return np.argsort(race_bg, axis=1)[:, : spec.pairs]
