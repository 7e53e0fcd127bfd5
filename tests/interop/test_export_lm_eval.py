"""lm-evaluation-harness scores exports offline: generated text, and perplexity over whole documents."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from archsearch.compiler import LanguageModel, compile_model
from archsearch.data.tokenizer import get_tokenizer
from archsearch.interop import to_transformers
from archsearch.spec import parse_spec

from .sources import perturb

pytest.importorskip("lm_eval")

MODELS = {
    "own_code": """
        tokenizer: bytes
        d_model: 32
        layers:
        - mamba2: {head_dim: 8, d_state: 8}
        - parallel: {branches: [mlp, attention: {heads: 2}], merge: concat}""",
    "native": """
        tokenizer: bytes
        d_model: 32
        layers:
        - mamba2: {head_dim: 8, d_state: 8}
        - mlp
        - attention: {heads: 2}
        - mlp""",
}
DOCUMENTS = ["The harness reads this.", "And this, which is longer than the first: naïve, 日本.", "Short."]
TASKS = {
    "tiny_text": """
task: tiny_text
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
""",
    "tiny_answers": """
task: tiny_answers
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_lm_eval(name: str, tmp_path: Path) -> None:
    text = "\n".join(line[8:] for line in MODELS[name].splitlines()[1:])
    model = compile_model(parse_spec(text), seed=4).eval()
    perturb(model, torch.Generator().manual_seed(4))
    to_transformers(model, tmp_path / "model")
    rows = [{"text": document, "answer": answer(model, document)} for document in DOCUMENTS]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    for task, fields in TASKS.items():
        (tmp_path / "tasks" / f"{task}.yaml").write_text(fields.replace("DATA", str(data)))
    results = harness(tmp_path)
    # Every answer is what the model itself says next.
    assert results["tiny_answers"]["exact_match,none"] == 1
    expected = perplexity_of_bytes(model)
    assert results["tiny_text"]["byte_perplexity,none"] == pytest.approx(expected, rel=1e-4)


def harness(folder: Path) -> dict[str, dict[str, Any]]:
    """What lm_eval finds, in a process that is told to stay offline."""
    arguments = f"pretrained={folder / 'model'},trust_remote_code=True,dtype=float32"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", arguments),
            *("--tasks", ",".join(TASKS), "--include_path", str(folder / "tasks"), "--device", "cpu"),
            *("--batch_size", "3", "--output_path", str(folder / "results")),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = (folder / "results").rglob("results*.json")
    found: dict[str, dict[str, Any]] = json.loads(file.read_text())["results"]
    return found


def answer(model: LanguageModel, text: str) -> str:
    """The model's next 8 bytes, up to a line's or a document's end, as text."""
    tokenizer = get_tokenizer("bytes")
    ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))[None]
    chosen: list[int] = []
    with torch.no_grad():
        logits_blv, state = model.prefill(ids)
        logits_bv = logits_blv[:, -1]
        while len(chosen) < 8:
            chosen.append(int(logits_bv.argmax()))
            if chosen[-1] == 0:
                break
            logits_bv, state = model.step(torch.tensor(chosen[-1:]), state)
    return tokenizer.decode([id for id in chosen if id]).split("\n")[0]


def perplexity_of_bytes(model: LanguageModel) -> float:
    """Of all documents, each after the end of another."""
    total, count = 0.0, 0
    for document in DOCUMENTS:
        ids = torch.from_numpy(get_tokenizer("bytes").encode(document).astype("int64"))[None]
        with torch.no_grad():
            logits = model(torch.cat([torch.zeros(1, 1, dtype=torch.long), ids], dim=1))[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, ids[0], reduction="sum").item()
        count += ids.shape[1]
    return math.exp(total / count)
