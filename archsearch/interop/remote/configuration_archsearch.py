"""transformers' config of a model that archsearch describes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class ArchsearchConfig(PreTrainedConfig):
    """spec: the whole model, as YAML's plain values. The other fields repeat what tools ask a config for."""

    model_type = "archsearch"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' own form)

    spec: dict[str, Any] | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
