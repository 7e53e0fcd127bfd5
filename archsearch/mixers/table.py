"""Layer kind -> the module that computes it: the one registry."""

from __future__ import annotations

from archsearch.mixers.attention import AttentionMixer
from archsearch.mixers.base import Mixer
from archsearch.mixers.gated_conv import GatedConvMixer
from archsearch.mixers.gated_deltanet import GatedDeltaNetMixer
from archsearch.mixers.gated_memory import GatedMemoryMixer
from archsearch.mixers.kda import KdaMixer
from archsearch.mixers.lightning import LightningMixer
from archsearch.mixers.linear import LinearMixer
from archsearch.mixers.mamba1 import Mamba1Mixer
from archsearch.mixers.mamba2 import Mamba2Mixer
from archsearch.mixers.mla import MlaMixer
from archsearch.mixers.mlp import MlpMixer
from archsearch.mixers.moe import MoeMixer
from archsearch.mixers.rglru import RgLruMixer

MIXERS: dict[str, type[Mixer]] = {
    "attention": AttentionMixer,
    "gated_conv": GatedConvMixer,
    "gated_deltanet": GatedDeltaNetMixer,
    "gated_memory": GatedMemoryMixer,
    "kda": KdaMixer,
    "lightning": LightningMixer,
    "linear": LinearMixer,
    "mamba1": Mamba1Mixer,
    "mamba2": Mamba2Mixer,
    "mla": MlaMixer,
    "mlp": MlpMixer,
    "moe": MoeMixer,
    "rglru": RgLruMixer,
}
