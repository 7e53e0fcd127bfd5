"""DeepSeek-V3 (arXiv 2412.19437): latent attention, and experts after the first layers."""

from __future__ import annotations

from collections.abc import Iterator

from archsearch.interop import parts
from archsearch.interop.blueprint import Family, Part, Trunk
from archsearch.interop.families import kimi_linear
from archsearch.interop.fields import Fields


def trunk(c: Fields) -> Trunk:
    return parts.trunk(c, eps=c.rms_norm_eps)


def layers(c: Fields) -> Iterator[Part]:
    c.understood(kimi_linear.mlp, kimi_linear.moe)
    c.agree(moe_layer_freq=1, scoring_func="sigmoid", topk_method="noaux_tc")
    rotation = kimi_linear.rotation(c, c.rope_interleave)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}"
        channel = kimi_linear.mlp if i < c.first_k_dense_replace else kimi_linear.moe
        attend = kimi_linear.latent_attention(c, f"{at}.self_attn", q_rank=c.q_lora_rank, **rotation)
        yield attend.normed(f"{at}.input_layernorm")
        yield channel(c, f"{at}.mlp").normed(f"{at}.post_attention_layernorm")


FAMILY = Family(
    ("deepseek_v3",),
    trunk,
    layers,
    ignored={
        **kimi_linear.DERIVED,
        "num_nextn_predict_layers": "transformers does not build them",
        "ep_size": "how it is computed, not what",
        **dict.fromkeys(("aux_loss_alpha", "seq_aux"), "for training"),
    },
)
