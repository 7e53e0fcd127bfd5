"""Blocks that are called several times stay one block: in memory, in training and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from archsearch.interop import from_transformers, import_folder, load_model
from archsearch.interop.importing import plan
from archsearch.spec import SpecError, model_cost

from .sources import build

CONFIGS: dict[str, dict[str, Any]] = {
    "zamba": {"config": "ZambaConfig", "n_mamba_heads": 2},
    "zamba2": {"config": "Zamba2Config", "n_mamba_heads": 6, "num_mem_blocks": 2, "adapter_rank": 4},
    "zamba2 with adapters in attention": {
        "config": "Zamba2Config",
        "n_mamba_heads": 6,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
    },
}


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def source(request: pytest.FixtureRequest) -> Any:
    fields = {
        "vocab_size": 96,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 4,
    }
    return build(fields | request.param)


def test_what_is_shared_is_one_parameter(source: Any) -> None:
    spec, ours = from_transformers(source)
    held = sum(parameter.numel() for parameter in ours.parameters())
    assert held == sum(parameter.numel() for parameter in source.parameters())
    assert held == model_cost(spec, context=1).total.params


def test_every_call_learns_what_one_learns(source: Any) -> None:
    """A call's gradient reaches the block, and the block's change every call."""
    _, ours = from_transformers(source)
    called = [ours.layers[i].layer.layers[0].layer.layers[0].layer.qkv_proj.weight for i in (0, 2, 3)]
    ours(torch.arange(1, 9)[None]).logsumexp(-1).sum().backward()
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    assert called[2] is called[0]
    assert (called[1] is called[0]) == (getattr(source.config, "num_mem_blocks", 1) == 1)
    assert called[0].grad is not None
    assert called[0].grad.abs().sum() > 0


def test_a_folder(source: Any, tmp_path: Path) -> None:
    source.save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "ours")
    ours, ids_bl = load_model(tmp_path / "ours"), torch.arange(1, 9)[None]
    expected = from_transformers(source)[1]
    assert len(list(ours.parameters())) == len(list(expected.parameters()))
    with torch.no_grad():
        assert torch.equal(ours(ids_bl), expected(ids_bl))


@pytest.mark.parametrize("config", ["ZambaConfig", "Zamba2Config"])
def test_blocks_that_transformers_would_not_share(config: str) -> None:
    with pytest.raises(
        SpecError, match=r"config: tie_word_embeddings: without it transformers does not share"
    ):
        plan(getattr(transformers, config)(tie_word_embeddings=False))
