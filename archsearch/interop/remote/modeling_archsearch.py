"""transformers' causal language model around archsearch's own.

Shape suffixes: b batch, l new tokens, t tokens so far, n tokens whose logits are kept, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from archsearch.compiler.build import compile_model
from archsearch.compiler.model import LanguageModel, ModelState
from archsearch.interop.modules import Unallocated, first_names
from archsearch.interop.remote.configuration_archsearch import ArchsearchConfig
from archsearch.mixers.base import Call
from archsearch.mixers.kernels import choose_kernels
from archsearch.spec.model import ModelSpec


class StateCache(Cache):
    """What the model remembers of a batch: `forward` puts the new state in place of the old one.

    state: None before the first token. seen: tokens so far, padding included.
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: ModelState | None = None
        self.seen = 0

    def __len__(self) -> int:
        return len(self.state.layers) if self.state is not None else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def reset(self) -> None:
        self.state, self.seen = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Sequence beam_idx[i] at place i."""
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda tensor: tensor[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise NotImplementedError("recurrent states cannot be taken back by some tokens")

    def _each(self, change: Any) -> None:
        """Change every tensor; the batch is the first axis of all."""
        if self.state is not None:
            mask_bt = self.state.mask_bt
            layers = tuple(_changed(part, change) for part in self.state.layers)
            mask_bt = mask_bt if mask_bt is None else change(mask_bt)
            self.state = ModelState(layers, self.state.position, mask_bt)


def _changed(state: Any, change: Any) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple):
        parts = [_changed(part, change) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


class ArchsearchForCausalLM(PreTrainedModel, GenerationMixin):
    """Batches of unequal prompts are padded on the left, and `attention_mask` is 0 there."""

    config_class = ArchsearchConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = {"Block"}  # noqa: RUF012 (transformers' own form)
    _keep_in_fp32_modules_strict = {"selection_bias"}  # noqa: RUF012 (as routers keep it in any dtype)
    _is_stateful = True  # no assisted generation: it takes back tokens

    def __init__(self, config: ArchsearchConfig):
        super().__init__(config)
        self.model = _build(ModelSpec.model_validate(config.spec))
        # Every further name of a weight that has several; the checkpoint holds the first.
        self._tied_weights_keys = {name: first for name, first in first_names(self).items() if name != first}
        for module in self.model.modules():
            # Loading empties the buffers that checkpoints do not hold; see `_init_weights`.
            hidden = module._non_persistent_buffers_set
            buffers = module.named_buffers(recurse=False)
            module.constants = {name: value.clone() for name, value in buffers if name in hidden}
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        return dict(self._tied_weights_keys)

    def _init_weights(self, module: nn.Module) -> None:
        """Put constants back. Weights are drawn when the model is made, or loaded."""
        for name, value in getattr(module, "constants", {}).items():
            module.get_buffer(name).copy_(value)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes the cache

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """attention_mask (batch, tokens so far): 0 at padding. logits_to_keep: of the last tokens; 0: all."""
        cache = _own(past_key_values)
        if cache is not None and cache.state is not None:
            logits_blv = self._continue(input_ids, attention_mask, cache)
            losses: list[Tensor] = []
        else:
            call = Call(_mask(attention_mask))
            losses = call.losses
            asked = use_cache if cache is None else True
            if self._wants_cache(asked, attention_mask, labels) and cache is None:
                cache = StateCache()
            if cache is None:
                logits_blv = self.model(input_ids, call)
            else:
                logits_blv, cache.state = self.model.prefill(input_ids, call)
                cache.seen = input_ids.shape[1]
        logits_bnv = logits_blv[:, -logits_to_keep:] if logits_to_keep else logits_blv
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits_bnv, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
            loss = sum(losses, loss)
        return CausalLMOutputWithPast(loss=loss, logits=logits_bnv, past_key_values=cache)

    def _wants_cache(self, asked: bool | None, attention_mask: Tensor | None, labels: Tensor | None) -> bool:
        continuable = attention_mask is None or bool(attention_mask[:, -1].all())
        if asked and not continuable:
            raise ValueError("a cache continues the last token, so prompts must be padded on the left")
        if asked is None:
            return self.config.use_cache and continuable and not self.training and labels is None
        return asked

    def _continue(self, ids_bl: Tensor, attention_mask: Tensor | None, cache: StateCache) -> Tensor:
        """Token by token: states are made for that."""
        length = ids_bl.shape[1]
        if attention_mask is not None and not attention_mask[:, -length:].all():
            raise ValueError("padding among tokens that continue a cache is not supported")
        logits = []
        for ids_b in ids_bl.unbind(1):
            assert cache.state is not None
            logits_bv, cache.state = self.model.step(ids_b, cache.state, donate=True)
            logits.append(logits_bv)
        cache.seen += length
        return torch.stack(logits, dim=1)


def _build(spec: ModelSpec) -> LanguageModel:
    """With initial weights; or, where transformers is about to load some, with the place for them alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # kernels look at each tensor's device again
    if torch.get_default_device().type != "meta":
        seed = int(torch.randint(1 << 31, ()))
        return compile_model(spec, dtype=torch.get_default_dtype(), seed=seed)
    with torch.device("cpu"), Unallocated():
        return LanguageModel(spec, choose_kernels("auto", device))


def _own(cache: Cache | None) -> StateCache | None:
    """The cache if it is this model's. An empty one of another class, which callers make unasked, is none."""
    if cache is None or isinstance(cache, StateCache):
        return cache
    if cache.get_seq_length():
        raise TypeError(f"this model continues its own StateCache, found a filled {type(cache).__name__}")
    return None


def _mask(attention_mask: Tensor | None) -> Tensor | None:
    """True from each row's first real token on; None where nothing is padded before it.

    Padding behind the last token changes no logits before it, as every layer is causal.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.ndim != 2:
        raise ValueError(f"attention_mask: expected (batch, tokens), found {tuple(attention_mask.shape)}")
    real_bt = attention_mask.bool()
    begun_bt = real_bt.cumsum(1) > 0
    ended_bt = real_bt.flip(1).cumsum(1).flip(1) == 0
    if not bool((real_bt | ~begun_bt | ended_bt).all()):
        raise ValueError("attention_mask: padding between real tokens is not supported")
    return None if bool(begun_bt.all()) else begun_bt
