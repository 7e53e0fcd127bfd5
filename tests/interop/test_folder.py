"""Folders of transformers models, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from archsearch.cli import app, main
from archsearch.interop import from_transformers, load_model
from archsearch.spec import SpecError, load_spec

from .sources import FAMILIES, Draw, logits, source


@pytest.fixture(scope="module")
def hf() -> Any:
    return source("nemotron_h", 0)


@pytest.fixture(scope="module")
def saved(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as transformers saves it, in several files and with the names of old checkpoints."""
    folder = tmp_path_factory.mktemp("sources") / "Nemotron-Tiny"
    hf.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def run(*arguments: object) -> str:
    """What `archsearch import` prints. Raises what it raises."""
    done = CliRunner().invoke(app, ["import", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_folder(hf: Any, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours"
    said = run(saved, "--out", out)
    assert "'Nemotron-Tiny', 5 layers" in said
    assert "with its weights" in said
    assert load_spec(out / "spec.yaml").hash == from_transformers(hf)[0].hash
    ids_bl = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_model(out)(ids_bl), logits(hf, ids_bl), rtol=1e-5, atol=1e-5)


def test_a_config_alone(hf: Any, saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "ours"
    assert "without weights" in run(saved / "config.json", "--out", out)
    assert load_spec(out / "spec.yaml").hash == from_transformers(hf)[0].hash
    with pytest.raises(SpecError, match=r"no imported model \(expected spec.yaml and model.safetensors"):
        load_model(out)


def changed(saved: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a saved model, its first file of weights changed."""
    shutil.copytree(saved, folder)
    path = min(folder.glob("*.safetensors"))
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    places = {name: file for name, file in listed["weight_map"].items() if file != path.name}
    index.write_text(json.dumps(listed | {"weight_map": places | dict.fromkeys(weights, path.name)}))
    return folder


def test_weights_that_the_files_lack(saved: Path, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "theirs", lambda weights: weights.pop(min(weights)))
    with pytest.raises(SpecError, match="theirs: missing weights: "):
        run(folder, "--out", tmp_path / "ours")


def test_weights_that_the_model_has_no_place_for(saved: Path, tmp_path: Path) -> None:
    more = {"model.layers.0.mixer.temperature": torch.ones(3)}
    folder = changed(saved, tmp_path / "theirs", lambda weights: weights.update(more))
    with pytest.raises(SpecError, match=r"theirs: unexpected weights: model.layers.0.mixer.temperature$"):
        run(folder, "--out", tmp_path / "ours")


def test_the_text_part_of_a_model_that_also_sees(tmp_path: Path) -> None:
    text = FAMILIES["qwen3_5"](Draw(0))
    del text["config"]
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 48}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=sight)
    hf = transformers.AutoModelForImageTextToText.from_config(config).eval()
    hf.save_pretrained(tmp_path / "theirs")
    run(tmp_path / "theirs", "--out", tmp_path / "ours")
    ids_bl = torch.arange(1, 20)[None]
    with torch.no_grad():
        ours = load_model(tmp_path / "ours")(ids_bl)
    torch.testing.assert_close(ours, logits(hf, ids_bl), rtol=1e-5, atol=1e-5)


def test_a_model_is_not_written_over(tmp_path: Path) -> None:
    single = tmp_path / "theirs"
    source("llama", 0).save_pretrained(single)
    before = (single / "model.safetensors").read_bytes()
    with pytest.raises(SpecError, match=r"model.safetensors: is there already; give another --out"):
        run(single, "--out", single)
    assert (single / "model.safetensors").read_bytes() == before


def test_half_precision_is_kept(hf: Any, tmp_path: Path) -> None:
    source("llama", 0).to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    run(tmp_path / "theirs", "--out", tmp_path / "ours")
    model = load_model(tmp_path / "ours")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_an_unknown_field(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text()) | {"mamba_flavour": "sour"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(SpecError, match=r"^nemotron_h config: unknown here.*: mamba_flavour \('sour'\)$"):
        run(path, "--out", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
    run(path, "--out", tmp_path / "ours", "--ignore", "mamba_flavour")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="nowhere: no such file or folder"):
        run(tmp_path / "nowhere", "--out", tmp_path / "ours")
    llama = {"model_type": "llama", "hidden_size": "wide"}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    with pytest.raises(SpecError, match=r"config.json: transformers cannot read it: .*hidden_size"):
        run(tmp_path / "config.json", "--out", tmp_path / "ours")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SpecError, match=r"config.json: transformers cannot read it"):
        run(tmp_path / "config.json", "--out", tmp_path / "ours")


def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["archsearch", "import", "nowhere", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    assert capsys.readouterr().err == "nowhere: no such file or folder\n"
