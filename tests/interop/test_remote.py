"""Exports with their own code: loaded without archsearch, padded, cached, reordered, trained on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from archsearch.compiler import LanguageModel, compile_model
from archsearch.interop import from_transformers
from archsearch.interop.remote.bundle import write_code
from archsearch.interop.remote.modeling_archsearch import ArchsearchForCausalLM, StateCache
from archsearch.interop.remote.writing import write_remote
from archsearch.interop.returning import register
from archsearch.spec import ModelSpec, SpecError, parse_spec

from .sources import perturb

SSM = "mamba2: {d_state: 8, head_dim: 8, multipliers: [0.7, 1.2, 0.8, 1.1, 0.6]}"
SPECS: dict[str, str] = {
    "nested": f"""
        layers:
        - parallel:
            branches:
            - {SSM}
            - - attention: {{heads: 2, window: 5}}
              - parallel: {{branches: [mamba1: {{d_state: 4}}, gated_conv], merge: {{gate: {{by: token}}}}}}
            merge: {{cross_attention: {{query: ssm, heads: 2, window: 7}}}}
        - mlp""",
    "shared": f"""
        meta_tokens: 3
        norm: {{unit_offset: true}}
        layers:
        - attention: {{id: block, heads: 2, inputs: [embedding]}}
        - {SSM}
        - {{share: block, lora: 4}}
        - mlp: {{id: wide}}
        - share: wide
        - {{share: block, lora: 2}}""",
    "streams": f"""
        embedding: {{tied: true, positions: {{learned: 96}}}}
        scales: {{softcap: 3.0, residual: 0.7}}
        layers:
        - attention: {{id: keys, heads: 4, kv_heads: 2, rope: none, sinks: true}}
        - {SSM.replace("{", "{id: told, ", 1)}
        - attention: {{heads: 4, kv_from: keys}}
        - gated_memory: {{memory_from: told}}
        - sequential: {{layers: [gated_deltanet: {{key_heads: 2, key_dim: 4, value_dim: 4}}, mlp]}}
        - moe: {{experts: 4, top_k: 2, hidden: 16, selection_bias: true}}""",
}
LENGTHS = (14, 5, 9)
NEW = 24


def spec_of(name: str) -> ModelSpec:
    lines = SPECS[name].splitlines()
    return parse_spec("\n".join(["vocab_size: 96", "d_model: 32", *(line[8:] for line in lines)]), name)


def built(spec: ModelSpec) -> LanguageModel:
    perturb(model := compile_model(spec, seed=1), torch.Generator().manual_seed(1))
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {name: built(spec_of(name)) for name in SPECS}


@pytest.fixture(scope="module")
def folders(models: dict[str, LanguageModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, model in models.items():
        found[name] = tmp_path_factory.mktemp("exports") / name
        found[name].mkdir()
        write_remote(model, found[name])
    return found


@pytest.fixture(params=SPECS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loaded(name: str, folders: dict[str, Path]) -> Any:
    """As transformers loads it, by the code here, which is that of the folder."""
    return ArchsearchForCausalLM.from_pretrained(folders[name])


def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 96, (1, length), generator=generator) for length in LENGTHS]


def padded(left: bool = True) -> tuple[Tensor, Tensor]:
    """The prompts in one batch, and its mask."""
    longest = max(LENGTHS)
    around = [(longest - length, 0) if left else (0, longest - length) for length in LENGTHS]
    pad = torch.nn.functional.pad
    ids = torch.cat([pad(row, space) for row, space in zip(prompts(), around, strict=True)])
    mask = torch.cat([pad(torch.ones_like(row), space) for row, space in zip(prompts(), around, strict=True)])
    return ids, mask


def generated(model: Any, ids_bl: Tensor, mask_bl: Tensor | None = None, **options: Any) -> Tensor:
    given = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    mask_bl = torch.ones_like(ids_bl) if mask_bl is None else mask_bl
    found: Tensor = model.generate(ids_bl, attention_mask=mask_bl, **given)
    return found[:, ids_bl.shape[1] :]


def test_without_archsearch(
    models: dict[str, LanguageModel], folders: dict[str, Path], tmp_path: Path
) -> None:
    """Another process, which can import neither archsearch nor what only reads YAML."""
    script = """
import importlib.abc, json, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("archsearch", "ruamel", "ray", "typer"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hidden())
import torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
ids = torch.arange(1, 12)[None]
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad():
        found[folder] = [model(ids).logits.tolist(), model.generate(ids, **options)[0, 11:].tolist()]
json.dump(found, open(sys.argv[1], "w"))
"""
    answer = tmp_path / "answer.json"
    paths = [str(folder) for folder in folders.values()]
    away = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, str(answer), *paths],
        cwd=tmp_path,
        env=away,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ids_bl = torch.arange(1, 12)[None]
    for name, (logits, text) in zip(models, json.loads(answer.read_text()).values(), strict=True):
        with torch.no_grad():
            assert torch.equal(models[name](ids_bl), torch.tensor(logits)), name
        assert greedy(models[name], ids_bl)[0].tolist() == text


def greedy(model: LanguageModel, ids_bl: Tensor) -> Tensor:
    chosen = []
    with torch.no_grad():
        logits_blv, state = model.prefill(ids_bl)
        logits_bv = logits_blv[:, -1]
        for _ in range(NEW):
            chosen.append(logits_bv.argmax(-1))
            logits_bv, state = model.step(chosen[-1], state)
    return torch.stack(chosen, dim=1)


def test_the_folder_names_no_module_outside_it(tmp_path: Path) -> None:
    write_code(tmp_path)
    for file in tmp_path.glob("*.py"):
        for line in file.read_text().splitlines():
            if line.lstrip().startswith(("from ", "import ")):
                assert "archsearch." not in line, (file, line)


def test_layers_from_elsewhere_are_refused(
    models: dict[str, LanguageModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from archsearch.mixers.table import MIXERS

    monkeypatch.setitem(MIXERS, "mlp", type("Own", (MIXERS["mlp"],), {"__module__": "lab.layers"}))
    with pytest.raises(SpecError, match=r"layers.1: mlp is defined in lab.layers, not in archsearch"):
        write_remote(models["nested"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_padding(loaded: Any) -> None:
    """Real tokens of a padded batch see what they would see alone."""
    ids_bl, mask_bl = padded()
    with torch.no_grad():
        together = loaded(ids_bl, attention_mask=mask_bl).logits
        for i, ids in enumerate(prompts()):
            alone = loaded(ids).logits[0]
            torch.testing.assert_close(together[i, -ids.shape[1] :], alone, rtol=2e-5, atol=2e-5)


def test_generation_of_unequal_prompts(loaded: Any) -> None:
    together = generated(loaded, *padded())
    for i, ids in enumerate(prompts()):
        assert together[i].tolist() == generated(loaded, ids)[0].tolist()
        assert generated(loaded, ids, use_cache=False)[0].tolist() == together[i].tolist()


def test_beams(loaded: Any) -> None:
    """Caches follow the beams: the same text as without."""
    ids_bl, mask_bl = padded()
    with_caches, without = (
        generated(loaded, ids_bl, mask_bl, num_beams=3, max_new_tokens=8, use_cache=cached)
        for cached in (True, False)
    )
    assert with_caches.tolist() == without.tolist()


def test_several_tokens_on_an_old_cache(loaded: Any) -> None:
    ids_bl, mask_bl = padded()
    with torch.no_grad():
        whole = loaded(ids_bl, attention_mask=mask_bl).logits
        first = loaded(ids_bl[:, :10], attention_mask=mask_bl[:, :10])
        rest = loaded(ids_bl[:, 10:], attention_mask=mask_bl, past_key_values=first.past_key_values)
    assert rest.past_key_values.get_seq_length() == ids_bl.shape[1]
    torch.testing.assert_close(rest.logits, whole[:, 10:], rtol=2e-5, atol=2e-5)
    continued = generated(loaded, ids_bl, mask_bl, past_key_values=first_part(loaded, ids_bl, mask_bl))
    assert continued.tolist() == generated(loaded, ids_bl, mask_bl).tolist()


def first_part(loaded: Any, ids_bl: Tensor, mask_bl: Tensor) -> StateCache:
    with torch.no_grad():
        found: StateCache = loaded(ids_bl[:, :10], attention_mask=mask_bl[:, :10]).past_key_values
    return found


def test_saved_again_and_imported(
    name: str, loaded: Any, models: dict[str, LanguageModel], tmp_path: Path
) -> None:
    """Shared weights stay shared, and constants that no checkpoint holds are there."""
    loaded.save_pretrained(tmp_path)
    register()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in models[name].parameters())
    spec, model = from_transformers(again)
    assert spec.hash == models[name].spec.hash
    kept, ours = model.state_dict(), models[name].state_dict()
    assert kept.keys() == ours.keys()
    assert all(torch.equal(kept[key], ours[key]) for key in ours)
    ids_bl = prompts()[0]
    with torch.no_grad():
        assert torch.equal(again(ids_bl).logits, models[name](ids_bl))


def test_bfloat16(name: str, tmp_path: Path) -> None:
    """Dtypes are those of the weights, also where one tensor is kept finer than the rest."""
    model = built(spec_of(name)).to(torch.bfloat16)
    write_remote(model, tmp_path)
    loaded = ArchsearchForCausalLM.from_pretrained(tmp_path)
    held, ours = loaded.model.state_dict(), model.state_dict()
    assert all(held[key].dtype == ours[key].dtype and torch.equal(held[key], ours[key]) for key in ours)
    with torch.no_grad():
        assert torch.equal(loaded(prompts()[0]).logits, model(prompts()[0]))


def test_training(loaded: Any) -> None:
    """Padding on the right does no harm; the loss is the shifted cross-entropy of real tokens."""
    ids_bl, mask_bl = padded(left=False)
    labels = ids_bl.masked_fill(mask_bl == 0, -100)
    found = loaded.train()(ids_bl, attention_mask=mask_bl, labels=labels)
    assert found.past_key_values is None
    found.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    with torch.no_grad():
        eval_loss = loaded.eval()(ids_bl, attention_mask=mask_bl, labels=labels).loss
        losses = [
            torch.nn.functional.cross_entropy(loaded(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
            for ids in prompts()
        ]
    expected = sum(losses) / (sum(LENGTHS) - len(LENGTHS))
    torch.testing.assert_close(eval_loss, expected, rtol=1e-5, atol=1e-5)


def test_only_the_last_logits(loaded: Any) -> None:
    ids = prompts()[0]
    with torch.no_grad():
        assert torch.equal(loaded(ids, logits_to_keep=3).logits, loaded(ids).logits[:, -3:])


def test_new_weights_are_drawn_by_our_rules(name: str, loaded: Any) -> None:
    torch.manual_seed(3)
    fresh = ArchsearchForCausalLM(loaded.config)
    torch.manual_seed(3)
    seed = int(torch.randint(1 << 31, ()))
    ours = compile_model(spec_of(name), seed=seed).state_dict()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in fresh.model.state_dict().items())


class TestRefusals:
    @pytest.fixture
    def name(self) -> str:
        return "nested"

    def test_padding_inside(self, loaded: Any) -> None:
        ids = prompts()[0]
        mask = torch.ones_like(ids)
        mask[0, 4] = 0
        with pytest.raises(ValueError, match="padding between real tokens"):
            loaded(ids, attention_mask=mask)

    def test_a_cache_after_padding_on_the_right(self, loaded: Any) -> None:
        ids_bl, mask_bl = padded(left=False)
        assert loaded(ids_bl, attention_mask=mask_bl).past_key_values is None
        for asked in ({"use_cache": True}, {"past_key_values": StateCache()}):
            with pytest.raises(ValueError, match="padded on the left"):
                loaded(ids_bl, attention_mask=mask_bl, **asked)

    def test_padding_among_further_tokens(self, loaded: Any) -> None:
        ids = prompts()[0]
        cache = loaded(ids).past_key_values
        mask = torch.ones(1, ids.shape[1] + 2)
        mask[0, -2] = 0
        with pytest.raises(ValueError, match="padding among tokens that continue a cache"):
            loaded(ids[:, :2], attention_mask=mask, past_key_values=cache)

    def test_caches_of_others(self, loaded: Any) -> None:
        ids, cache = prompts()[0], DynamicCache()
        assert isinstance(loaded(ids, past_key_values=cache).past_key_values, StateCache)
        cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
        with pytest.raises(TypeError, match="a filled DynamicCache"):
            loaded(ids, past_key_values=cache)
