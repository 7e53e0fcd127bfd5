"""The command line: exit codes, one-line errors, machine formats, and what it may load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted((ROOT / "specs").glob("*.yaml"))

TINY = """
name: tiny
arch: {tokenizer: bytes, d_model: 16, pattern: "M-*-", defaults: {mamba2: {d_state: 4, head_dim: 16}}}
data: {mixture: {reference: 0.5, mqar: 0.5}}
training: {tokens: 4K, context: 64, tokens_per_step: 512}
evaluation: {tokens: 1K, examples: 8}
"""


def archsearch(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "archsearch", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def loaded_modules(*arguments: str) -> set[str]:
    """Which of the heavy libraries a command loads."""
    program = (
        "import sys\nfrom archsearch.cli import main\n"
        f"sys.argv = ['archsearch', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        "print('loaded', [m for m in ('torch', 'ray', 'optuna') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(json.loads(done.stderr.rsplit("loaded ", 1)[1].replace("'", '"')))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("validate", "specs/samba_tiny.yaml", "search_spaces/quickstart.yaml"),
        ("show", "specs/samba_tiny.yaml"),
        ("show", "specs/published/zamba2_7b.yaml", "--dtype", "bfloat16"),
        ("schema",),
        ("schema", "space"),
        ("sweep", "--help"),
    ],
    ids=lambda arguments: "-".join(arguments[:2]).replace("/", "_"),
)
def test_reading_commands_load_neither_torch_nor_ray(arguments: tuple[str, ...]) -> None:
    assert loaded_modules(*arguments) == set()


def test_the_library_is_valid() -> None:
    spaces = sorted((ROOT / "search_spaces").glob("*.yaml"))
    published = sorted((ROOT / "specs" / "published").glob("*.yaml"))
    done = archsearch("validate", *SPECS, *published, *spaces)
    assert done.stdout.count(": ok: ") == len(SPECS) + len(published) + len(spaces)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_show_json_adds_up(path: Path) -> None:
    found = json.loads(archsearch("show", path, "--json", "--context", 100).stdout)
    assert {"name", "hash", "params", "active_params", "flops_per_token", "state_bytes", "layers"} <= set(
        found
    )
    parts = [found["embedding"], found["head"], *found["layers"]]
    for key in ("params", "active_params", "state_bytes"):
        assert found[key] == sum(part[key] for part in parts)
    assert all(
        {"path", "kind", "params", "flops_per_token", "state_bytes"} <= set(x) for x in found["layers"]
    )


def test_show_json_at_several_contexts() -> None:
    found = json.loads(archsearch("show", SPECS[0], "--json", "--context", "4k,100", "--context", "1").stdout)
    assert list(found["contexts"]) == ["4096", "100", "1"]
    assert found["context"] == 4096
    for key in ("flops_per_token", "state_bytes"):
        assert found[key] == found["contexts"]["4096"][key] > found["contexts"]["100"][key]
    by_default = json.loads(archsearch("show", SPECS[0], "--json").stdout)
    assert list(by_default["contexts"]) == ["4096", "32768", "262144"]


def test_show_resolved_is_the_same_model(tmp_path: Path) -> None:
    written = tmp_path / "resolved.yaml"
    written.write_text(archsearch("show", SPECS[0], "--resolved").stdout)
    hashes = [json.loads(archsearch("show", p, "--json").stdout)["hash"] for p in (SPECS[0], written)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("validate", "no/such/file.yaml"), "no such file"),
        (("show", "specs/samba_tiny.yaml", "--dtype", "float23"), "did you mean 'float32'"),
        (("show", "specs/samba_tiny.yaml", "--context", "0"), "at least 1"),
        (("show", "specs/samba_tiny.yaml", "--context", "4x"), "--context: expected tokens"),
        (("train", "specs/samba_tiny.yaml", "--tokens", "many"), "training.tokens"),
        (("train", "specs/samba_tiny.yaml", "--device", "gpu9"), "unknown device"),
        (("eval", "specs"), "no trained model"),
        (("watch", "specs"), "specs"),
        (("report", "specs"), "specs"),
        (("sweep", "specs/samba_tiny.yaml"), "specs/samba_tiny.yaml"),
        (("sweeep",), "sweep"),
    ],
    ids=lambda value: "-".join(value[:2]).replace("/", "_") if isinstance(value, tuple) else None,
)
def test_a_users_mistake_is_one_clear_message(arguments: tuple[str, ...], said: str) -> None:
    done = archsearch(*arguments, code=2)
    assert said in done.stderr
    assert not done.stdout


def test_validate_says_every_wrong_file_and_goes_on(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("tokenizer: bytes\nd_model: 64\nlayers:\n  - attention: {hedas: 2}\n")
    done = archsearch("validate", wrong, SPECS[0], code=2)
    assert done.stderr == (
        f"{wrong}:4:17: layers.0.attention.hedas: unknown key 'hedas'; did you mean 'heads'?\n"
    )
    assert f"{SPECS[0]}: ok" in done.stdout


def test_schema_is_json() -> None:
    assert "$defs" in json.loads(archsearch("schema").stdout)
    assert "hole" in json.loads(archsearch("schema", "space").stdout)["$defs"]
    assert "did you mean 'space'?" in archsearch("schema", "spaces", code=2).stderr


def test_show_works_out_what_an_experiment_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "matched.yaml"
    path.write_text(
        "arch:\n  tokenizer: bytes\n  d_model: 64\n  match: {params: 200K, by: mlp.expand}\n"
        "  layers: [mamba2, mlp, attention, mlp]\n"
        "training: {flops: 1e13, context: 64, lr: {base: 0.004, at: 32, scale: width}}\n"
    )
    done = archsearch("show", path)
    assert "parameters 200,006" in done.stdout
    assert "learning rate 0.002" in done.stdout
    assert json.loads(archsearch("show", path, "--json").stdout)["params"] == 200_006
    assert "expand:" in archsearch("show", path, "--resolved").stdout
    refused = archsearch("show", "search_spaces/quickstart.yaml", code=2)
    assert refused.stderr.startswith("search_spaces/quickstart.yaml:1:1: : a search space; ")


def test_ls_of_nothing(tmp_path: Path) -> None:
    assert "no runs" in archsearch("ls", tmp_path).stdout
    assert json.loads(archsearch("ls", tmp_path, "--json").stdout) == []


def test_train_then_eval(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    trained = json.loads(archsearch("train", tiny, "--out", out, "--threads", 1, "--json").stdout)
    assert 0 <= trained["recall"] <= 1
    assert trained["perplexity"] > 1
    scored = json.loads(archsearch("eval", out, "--split", "validation", "--threads", 1, "--json").stdout)
    assert scored == pytest.approx(trained, rel=1e-5)
    longer = archsearch("eval", out, "--contexts", "64,128", "--recall-contexts", "32,64", "--json").stdout
    assert {"perplexity/reference@128", "recall/mqar@64"} <= set(json.loads(longer))


def test_train_refuses_a_folder_with_another_experiment(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    archsearch("train", tiny, "--out", out, "--threads", 1, "--json")
    done = archsearch("train", tiny, "--out", out, "--seed", 7, code=2)
    assert "another experiment" in done.stderr


def test_training_that_diverges_exits_1(tiny: Path, tmp_path: Path) -> None:
    done = archsearch("train", tiny, "--out", tmp_path / "run", "--lr", "1e30", "--threads", 1, code=1)
    assert "non-finite" in done.stderr


def test_show_says_for_each_layer_which_kernels_it_would_use_and_why() -> None:
    lines = archsearch("show", "specs/samba_tiny.yaml", "--kernels", "cpu").stdout.splitlines()
    assert "layers.0: ssd: torch (the model is on cpu)" in lines
    assert "layers.0: short_conv: torch (the model is on cpu)" in lines
    assert any(line.startswith("layers.2: packed_attention: torch") for line in lines)
