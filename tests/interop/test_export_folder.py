"""Exported folders, through the command line: of runs, of checkpoints, of imported models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from typer.testing import CliRunner

from archsearch.cli import app, main
from archsearch.compiler import compile_model
from archsearch.data.tokenizer import get_tokenizer
from archsearch.experiment import Experiment
from archsearch.experiment.run import ExperimentRun
from archsearch.interop import load_model
from archsearch.interop.returning import register
from archsearch.spec import load_spec, parse_spec, to_yaml
from archsearch.spec.vocabulary import TOKENIZERS

EXPERIMENT = {
    "arch": {
        "name": "tiny",
        "tokenizer": "bytes",
        "d_model": 16,
        "layers": [
            {"mamba2": {"head_dim": 8, "d_state": 4}},
            {"parallel": {"branches": ["mlp", {"attention": {"heads": 2}}], "merge": "mean"}},
        ],
    },
    "data": {"mixture": {"mqar": 1}},
    "training": {"tokens": 256, "context": 32, "tokens_per_step": 64},
    "evaluation": {"examples": 8},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`trained`, a run to the end; `stopped`, one that has a checkpoint."""
    home = tmp_path_factory.mktemp("runs")
    experiment = Experiment.model_validate(EXPERIMENT)
    for name, steps in (("trained", 4), ("stopped", 3)):
        run = ExperimentRun(experiment, home / name)
        (home / name / "spec.yaml").write_text(to_yaml(experiment.dump()))
        run.advance(steps)
        run.checkpoint() if name == "stopped" else run.evaluate()
    return home


@pytest.fixture(scope="module")
def exported(runs: Path) -> Path:
    out = runs / "out"
    said = export(runs / "trained", "--out", out, "--license", "mit")
    assert f"{out}: ArchsearchForCausalLM, with its own code (trust_remote_code=True)" in said
    assert "nemotron_h, granitemoehybrid, bamba, zamba2, mamba2: layers.1: it has no parallel" in said
    return out


@pytest.fixture(scope="module")
def tokenizer(exported: Path) -> Any:
    return AutoTokenizer.from_pretrained(exported)


def export(*arguments: object) -> str:
    """What `archsearch export` prints. Raises what it raises."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_run(runs: Path, exported: Path, tokenizer: Any) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(exported)
    weights = load_file(runs / "trained" / "weights.safetensors")
    held = model.model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in weights.items())
    generation = GenerationConfig.from_pretrained(exported)
    assert (generation.eos_token_id, generation.pad_token_id) == (0, 0)
    prompt = tokenizer(["ab", "a longer one"], return_tensors="pt", padding=True)
    assert prompt.attention_mask[0].tolist() == [0] * 10 + [1, 1]
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape == (2, 15)


def test_its_card(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "256 tokens in 4 steps, contexts of 32" in text
    assert "| recall/mqar@32 |" in text
    assert "- parallel:" in text
    assert "trust_remote_code=True" in text


def test_a_checkpoint(runs: Path, tmp_path: Path) -> None:
    said = export(runs / "stopped" / "checkpoint.pt", "--out", tmp_path / "out")
    assert "ArchsearchForCausalLM" in said
    assert "192 tokens in 3 steps (stopped at 3 of 4)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("pattern", ["*-*-", "*SM"])
def test_an_imported_model(pattern: str, tmp_path: Path) -> None:
    """Ours to transformers' and back: the same spec, the same weights. It has no tokenizer, and says so."""
    text = f"vocab_size: 40\nd_model: 16\ndefaults: {{mamba2: {{head_dim: 8}}}}\npattern: '{pattern}'"
    model = compile_model(parse_spec(text), seed=2)
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "spec.yaml").write_text(to_yaml(model.spec))
    save_file(model.state_dict(), tmp_path / "before" / "model.safetensors")
    export(tmp_path / "before", "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer*"))
    assert "came without a tokenizer" in (tmp_path / "out" / "README.md").read_text()
    done = CliRunner().invoke(app, ["import", str(tmp_path / "out"), "--out", str(tmp_path / "after")])
    assert done.exit_code == 0, done.output
    assert load_spec(tmp_path / "after" / "spec.yaml").hash == model.spec.hash
    after = load_model(tmp_path / "after").state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in model.state_dict().items())


@given(text=st.text())
def test_the_tokenizer_encodes_as_ours(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == get_tokenizer("bytes").encode(text).tolist()
    assert tokenizer.decode(ids) == text


@given(ids=st.lists(st.integers(0, TOKENIZERS["bytes"] - 1)))
def test_the_tokenizer_decodes_as_ours(tokenizer: Any, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == get_tokenizer("bytes").decode(ids)
    assert "\0" not in tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "nowhere: no such file or folder"),
        ("trained/metrics.jsonl", "nothing to export (expected spec.yaml and one of weights.safetensors"),
        (".", "nothing to export"),
        ("sweep", "sweep: a sweep; give the folder of one of its trials"),
    ],
)
def test_mistakes(
    runs: Path, source: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "sweep").mkdir(exist_ok=True)
    (runs / "sweep" / "study.jsonl").touch()
    assert said in refused(["export", str(runs / source), "--out", str(runs / "new")], monkeypatch, capsys)
    assert not (runs / "new").exists()


def refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `archsearch` says before it ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["archsearch", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_unknown_formats(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", str(runs / "trained"), "--out", str(runs / "new"), "--format", "transformer"]
    line = refused(arguments, monkeypatch, capsys)
    assert line == "--format: unknown format 'transformer'; did you mean 'transformers'?"
