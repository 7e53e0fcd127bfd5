"""Scores against brute force, an oracle, and chance.

Shape suffixes: b sequence, l position, v vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from archsearch import compile_model
from archsearch.data import DataSpec, recall_examples, text_windows
from archsearch.evaluation import score
from archsearch.evaluation.score import evaluate, mean_nll, recall_accuracy
from archsearch.evaluation.spec import EvaluationSpec
from archsearch.spec import ModelSpec

VOCAB = 384
MODEL = ModelSpec.model_validate({"tokenizer": "bytes", "d_model": 16, "layers": ["attention", "mlp"]})
DATA = DataSpec(mixture={"reference": 1, "mqar": 1})


class Uniform(nn.Module):
    """Knows nothing."""

    def forward(self, ids_bl: Tensor) -> Tensor:
        return torch.zeros(*ids_bl.shape, VOCAB)


class Oracle(nn.Module):
    """Answers a question about a symbol with what followed it first: recall by looking it up."""

    def forward(self, ids_bl: Tensor) -> Tensor:
        logits_blv = torch.zeros(*ids_bl.shape, VOCAB)
        for b, row in enumerate(ids_bl.tolist()):
            for t, symbol in enumerate(row):
                first = row.index(symbol)
                if first < t:
                    logits_blv[b, t, row[first + 1]] = 10.0
        return logits_blv


class Told(nn.Module):
    """Predicts the targets it was given."""

    def __init__(self, targets_bl: Any):
        super().__init__()
        self.targets_bl = torch.from_numpy(targets_bl).clamp(min=0)

    def forward(self, ids_bl: Tensor) -> Tensor:
        return 10.0 * nn.functional.one_hot(self.targets_bl, VOCAB).float()


def scores(model: nn.Module, **fields: Any) -> dict[str, float]:
    spec = EvaluationSpec(tokens=2048, examples=40, **fields)
    return evaluate(
        model,
        DATA,
        spec,
        contexts=spec.contexts or [64],
        domains=spec.domains if spec.domains is not None else ["reference"],
        recall_tasks=spec.recall if spec.recall is not None else ["mqar"],
    )


@pytest.mark.parametrize("batch_tokens", [1, 100, 8192])
def test_likelihoods_are_those_of_brute_force(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "BATCH_TOKENS", batch_tokens)
    model = compile_model(MODEL)
    inputs_bl, targets_bl = text_windows("reference", "validation", context=33, max_tokens=500)
    total, count = 0.0, 0
    with torch.no_grad():
        for row, wanted in zip(inputs_bl, targets_bl, strict=True):
            probabilities_lv = model(torch.from_numpy(row)[None])[0].double().softmax(-1)
            for t, target in enumerate(wanted):
                total -= math.log(probabilities_lv[t, target])
                count += 1
        assert mean_nll(model, inputs_bl, targets_bl) == pytest.approx(total / count, rel=1e-5)


def test_a_uniform_model_is_as_perplexed_as_the_vocabulary_is_large() -> None:
    found = scores(Uniform())
    assert found["perplexity"] == pytest.approx(VOCAB, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(math.log2(VOCAB), rel=1e-5)
    assert found["nll/reference@64"] == pytest.approx(math.log(VOCAB), rel=1e-5)
    assert found["recall"] < 0.05


def test_an_oracle_recalls_everything() -> None:
    assert scores(Oracle(), domains=[])["recall"] == 1.0


def test_an_untrained_model_recalls_at_chance() -> None:
    assert scores(compile_model(MODEL), domains=[])["recall"] < 0.1


@pytest.mark.parametrize("task", ["mqar", "facts"])
def test_a_question_counts_when_its_whole_answer_is_right(task: str) -> None:
    asked = recall_examples(task, count=12, seed=0)
    assert recall_accuracy(Told(asked.targets_bl), asked) == 1.0
    wrong = asked.targets_bl.copy()
    row, position = np.argwhere(asked.question_bl == 0)[-1]
    wrong[row, position] = (wrong[row, position] + 1) % 256
    assert recall_accuracy(Told(wrong), asked) == pytest.approx(1 - 1 / asked.questions)


def test_summaries_are_means_over_what_was_asked() -> None:
    found = scores(
        compile_model(MODEL),
        contexts=[32, 64],
        domains=["reference", "code"],
        recall=["mqar", "facts"],
        recall_contexts=[128, 256],
    )
    nlls = [found[f"nll/{domain}@{context}"] for domain in ("reference", "code") for context in (32, 64)]
    assert found["perplexity"] == pytest.approx(math.exp(sum(nlls) / 4))
    assert found["bits_per_byte"] == pytest.approx(sum(nlls) / 4 / math.log(2))
    assert found["perplexity/code@32"] == pytest.approx(math.exp(found["nll/code@32"]))
    recalls = [found[f"recall/{task}@{length}"] for task in ("mqar", "facts") for length in (128, 256)]
    assert found["recall"] == pytest.approx(sum(recalls) / 4)
    assert len(found) == 4 * 3 + 4 + 3


def test_nothing_to_summarise_is_left_out() -> None:
    assert set(scores(Uniform(), recall=[])) == {
        "nll/reference@64",
        "perplexity/reference@64",
        "bits_per_byte/reference@64",
        "perplexity",
        "bits_per_byte",
    }
    assert set(scores(Uniform(), domains=[])) == {"recall/mqar@32", "recall"}


def test_scores_repeat_and_the_splits_differ() -> None:
    model = compile_model(MODEL)
    assert scores(model) == scores(model)
    assert scores(model)["perplexity"] != scores(model, split="test")["perplexity"]


def test_scoring_leaves_no_trace_on_the_model() -> None:
    model = compile_model(MODEL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    scores(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_test_split_asks_other_questions_than_the_validation_split() -> None:
    class Remembers(Uniform):
        def __init__(self) -> None:
            super().__init__()
            self.asked: set[tuple[int, ...]] = set()

        def forward(self, ids_bl: Tensor) -> Tensor:
            self.asked |= {tuple(row) for row in ids_bl.tolist()}
            return super().forward(ids_bl)

    asked = {}
    for split in ("validation", "test"):
        model = Remembers()
        spec = EvaluationSpec(examples=8, split=split)
        evaluate(model, DATA, spec, contexts=[], domains=[], recall_tasks=["mqar"])
        asked[split] = model.asked
    assert len(asked["validation"]) == len(asked["test"]) == 8
    assert not asked["validation"] & asked["test"]
