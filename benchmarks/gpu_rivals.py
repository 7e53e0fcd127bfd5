"""Models of other packages at the shapes of benchmarks/gpu.py: mamba_ssm's own, and those of transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("triton", "mamba-ssm", "causal-conv1d", "flash-attn", "flash-linear-attention", "transformers")

Built = tuple[nn.Module, Callable[[Tensor], Tensor]]
"""A model, and its logits."""

Decode = Callable[[], object]
"""Takes so many tokens one after another."""


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fast_path() -> str:
    """Whether transformers finds the packages that its Mamba-2 needs for kernels."""
    try:
        from transformers.utils import import_utils

        found = {
            name: getattr(import_utils, f"is_{name}_available") for name in ("mamba_2_ssm", "causal_conv1d")
        }
        return ", ".join(f"{name}: {is_there()}" for name, is_there in found.items())
    except Exception as error:
        return f"not known: {error}"


def delta_widths(shape: Any) -> tuple[int, int]:
    """Key and value dimensions of gated DeltaNet: 3/4 and 3/2 of d_model over the heads, rounded."""
    width = shape.d_model // shape.heads
    return (width, width) if shape.d_model > 64 else (16, 16)


def rivals(shape: Any, layout: str, device: str) -> Iterator[tuple[str, Callable[[], Built]]]:
    """Name and builder of each other model of a layout."""
    found: dict[str, list[tuple[str, Callable[[Any], Built]]]] = {
        "attention": [("transformers Llama", llama)],
        "mamba2": [("mamba_ssm", mamba_ssm), ("transformers Mamba2", mamba2)],
        "sequential": [("transformers Bamba", bamba)],
        "parallel": [("transformers FalconH1", falcon_h1)],
        "deltanet": [("transformers Qwen3.5", qwen)],
    }
    for name, make in found[layout]:
        yield name, lambda make=make: _on(device, make, shape)  # type: ignore[misc]


def decoders(shape: Any, layout: str, device: str) -> Iterator[tuple[str, Callable[[Tensor, int], Decode]]]:
    """Name, and builder of what decodes, of each other model of a layout: of a prompt (batch, length) and a
    number of tokens."""
    for name, make in rivals(shape, layout, device):
        how = _by_mamba_ssm if name == "mamba_ssm" else _by_transformers
        yield name, lambda ids, tokens, make=make, how=how: how(make()[0].bfloat16().eval(), ids, tokens)  # type: ignore[misc]


def _by_transformers(model: nn.Module, ids: Tensor, tokens: int) -> Decode:
    """One after another as `generate` calls the model, without what it does beside that."""
    out = model(input_ids=ids, use_cache=True)
    name = next(name for name in ("past_key_values", "cache_params") if getattr(out, name, None) is not None)
    cache = getattr(out, name)

    def run() -> None:
        current = ids[:, -1:]
        for _ in range(tokens):
            logits = model(input_ids=current, use_cache=True, **{name: cache}).logits
            current = logits[:, -1:].argmax(-1)

    return run


def _by_mamba_ssm(model: Any, ids: Tensor, tokens: int) -> Decode:
    """By its own CUDA graph of a step."""
    generation = importlib.import_module("mamba_ssm.utils.generation")
    batch, length = ids.shape
    graph = generation.update_graph_cache(model, None, batch, length, length + tokens)
    held = graph.inference_params
    held.reset(length + tokens, batch)
    model(ids, inference_params=held, num_last_tokens=1)

    def run() -> None:
        current = ids[:, -1:]
        for i in range(tokens):
            positions = current.new_full((batch, 1), length + i)
            current = graph.run(current, positions, length + i).argmax(-1)

    run.model = model  # type: ignore[attr-defined]  # the graph reads its weights, and does not hold it
    return run


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a stack, as is done with ours."""
    inner: Any = getattr(model, "model", None) or getattr(model, "backbone", None) or model
    for block in inner.layers:
        block.compile()


def _on(device: str, make: Callable[[Any], Built], shape: Any) -> Built:
    with torch.device(device):
        return make(shape)


def _transformers(name: str, **fields: Any) -> Built:
    library = importlib.import_module("transformers")
    family = getattr(library, f"{name}ForCausalLM")
    model = family(family.config_class(**fields))
    return model, lambda ids: model(input_ids=ids, use_cache=False).logits


def _common(shape: Any) -> dict[str, Any]:
    return {"hidden_size": shape.d_model, "vocab_size": shape.vocab, "tie_word_embeddings": True}


def _attention(shape: Any, layers: int) -> dict[str, Any]:
    return {
        **_common(shape),
        "intermediate_size": shape.hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "max_position_embeddings": 65536,
    }


def _mamba(shape: Any) -> dict[str, Any]:
    head_dim = 64 if shape.d_model > 64 else 16
    return {
        "mamba_n_heads": 2 * shape.d_model // head_dim,
        "mamba_d_head": head_dim,
        "mamba_n_groups": 1,
        "mamba_d_state": shape.d_state,
        "mamba_expand": 2,
        "mamba_chunk_size": 256,
    }


def llama(shape: Any) -> Built:
    return _transformers("Llama", **_attention(shape, shape.layers))


def mamba2(shape: Any) -> Built:
    head_dim = 64 if shape.d_model > 64 else 16
    return _transformers(
        "Mamba2",
        **_common(shape),
        num_hidden_layers=2 * shape.layers,
        num_heads=2 * shape.d_model // head_dim,
        head_dim=head_dim,
        state_size=shape.d_state,
        n_groups=1,
        expand=2,
        chunk_size=256,
    )


def bamba(shape: Any) -> Built:
    at = list(range(3, shape.layers, 4))
    return _transformers("Bamba", **_attention(shape, shape.layers), **_mamba(shape), attn_layer_indices=at)


def falcon_h1(shape: Any) -> Built:
    fields = _attention(shape, shape.layers * 3 // 4) | _mamba(shape)
    width = {"mamba_d_ssm": 2 * shape.d_model, "head_dim": shape.d_model // shape.heads}
    return _transformers("FalconH1", **fields, **width, mamba_rms_norm=True)


def qwen(shape: Any) -> Built:
    key_dim, value_dim = delta_widths(shape)
    library = importlib.import_module("transformers")
    config = library.Qwen3_5TextConfig(
        **_attention(shape, shape.layers),
        layer_types=["linear_attention"] * shape.layers,
        linear_num_key_heads=shape.heads // 2,
        linear_num_value_heads=shape.heads,
        linear_key_head_dim=key_dim,
        linear_value_head_dim=value_dim,
    )
    model = library.Qwen3_5ForCausalLM(config)
    return model, lambda ids: model(input_ids=ids, use_cache=False).logits


def mamba_ssm(shape: Any) -> Built:
    config = importlib.import_module("mamba_ssm.models.config_mamba")
    models = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
    layer = {"layer": "Mamba2", "d_state": shape.d_state, "headdim": 64, "chunk_size": 256}
    model = models.MambaLMHeadModel(
        config.MambaConfig(
            d_model=shape.d_model,
            n_layer=2 * shape.layers,
            d_intermediate=0,
            vocab_size=shape.vocab,
            ssm_cfg=layer,
            rms_norm=True,
            residual_in_fp32=True,
            fused_add_norm=True,
            tie_embeddings=True,
        )
    )
    return model, lambda ids: model(ids).logits
