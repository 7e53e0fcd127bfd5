"""Scores of a trained model, on text and recall sequences that training never saw.

Shape suffixes: b sequence, l position, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archsearch.data import DataSpec, RecallSet, recall_examples, text_windows
from archsearch.evaluation.spec import EvaluationSpec

Ids = npt.NDArray[np.int64]

BATCH_TOKENS = 8192
"""Tokens scored at a time: enough to fill the matmuls, little enough for a small machine's memory."""

HELD_OUT_SEEDS = {"validation": 0, "test": 1}
"""Every candidate of every study answers the same questions, so that scores differ by models alone; those of
the test split are others than those a search chose its winners by."""


def evaluate(
    model: nn.Module,
    data: DataSpec,
    spec: EvaluationSpec,
    *,
    contexts: list[int],
    domains: list[str],
    recall_tasks: list[str],
    device: str = "cpu",
) -> dict[str, float]:
    """Every metric of `spec`, flat.

    `nll/DOMAIN@L` nats a token, `perplexity/DOMAIN@L`, `bits_per_byte/DOMAIN@L`, `recall/TASK@L` (share of
    questions answered exactly). The summaries: `perplexity` is exp of the mean nll over domains and
    contexts, `bits_per_byte` that mean in bits, `recall` the mean over tasks and lengths. A summary with
    nothing to summarise is left out.
    """
    was_training = model.training
    model.eval()
    metrics: dict[str, float] = {}
    nlls, recalls = [], []
    with torch.no_grad():
        for domain in domains:
            for context in contexts:
                inputs_bl, targets_bl = text_windows(
                    data.source(domain),
                    spec.split,
                    context=context,
                    max_tokens=spec.tokens,
                    seed=HELD_OUT_SEEDS[spec.split],
                )
                nll = mean_nll(model, inputs_bl, targets_bl, device)
                nlls.append(nll)
                metrics[f"nll/{domain}@{context}"] = nll
                metrics[f"perplexity/{domain}@{context}"] = _exp(nll)
                metrics[f"bits_per_byte/{domain}@{context}"] = nll / math.log(2)
        for task in recall_tasks:
            lengths: list[int | None] = [*(spec.recall_contexts or [])] or [None]
            for length in lengths:
                asked = recall_examples(
                    data.source(task), length=length, count=spec.examples, seed=HELD_OUT_SEEDS[spec.split]
                )
                accuracy = recall_accuracy(model, asked, device)
                recalls.append(accuracy)
                metrics[f"recall/{task}@{asked.inputs_bl.shape[1]}"] = accuracy
    model.train(was_training)
    if nlls:
        metrics["perplexity"] = _exp(sum(nlls) / len(nlls))
        metrics["bits_per_byte"] = sum(nlls) / len(nlls) / math.log(2)
    if recalls:
        metrics["recall"] = sum(recalls) / len(recalls)
    return metrics


def mean_nll(model: nn.Module, inputs_bl: Ids, targets_bl: Ids, device: str = "cpu") -> float:
    """Mean negative log-likelihood of the targets, in nats a token."""
    total = 0.0
    for rows, logits_blv in _forward(model, inputs_bl, device):
        targets = torch.from_numpy(targets_bl[rows]).to(device)
        loss = F.cross_entropy(logits_blv.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        total += loss.item()
    return total / targets_bl.size


def recall_accuracy(model: nn.Module, asked: RecallSet, device: str = "cpu") -> float:
    """Share of the questions whose whole answer the model predicts, greedily: given the right answer so far,
    every next token of it is the likeliest, which is what greedy decoding would produce."""
    predictions = np.empty_like(asked.inputs_bl)
    for rows, logits_blv in _forward(model, asked.inputs_bl, device):
        predictions[rows] = logits_blv.argmax(-1).cpu().numpy()
    return asked.accuracy(predictions)


def _forward(model: nn.Module, inputs_bl: Ids, device: str) -> Iterator[tuple[slice, Tensor]]:
    """Logits, a few sequences at a time."""
    rows = max(1, BATCH_TOKENS // inputs_bl.shape[1])
    for start in range(0, len(inputs_bl), rows):
        part = slice(start, start + rows)
        yield part, model(torch.from_numpy(inputs_bl[part]).to(device))


def _exp(nll: float) -> float:
    """exp, infinite where it would overflow."""
    return math.exp(nll) if nll < 700 else math.inf
