"""The `evaluation` section of an experiment. Pydantic only: read before torch is loaded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from archsearch.spec.layers import Spec
from archsearch.spec.quantities import Count

Context = Annotated[int, Field(ge=2)]


class EvaluationSpec(Spec):
    """What a trained model is scored on, always on text and recall sequences that training never saw.

    contexts: lengths at which each text domain is scored (tokens); default: the training context.
    domains: text sources; default: every text source of the mixture. tokens: held-out tokens a domain and
    context. recall: recall tasks; default: every recall source of the mixture, mqar if there is none.
    recall_contexts: lengths at which recall tasks are asked; default: the length each task is trained at.
    examples: recall sequences a task and length. split: which held-out part; a search scores on
    `validation`, so that `test` stays untouched for the winners.
    """

    contexts: Annotated[list[Context], Field(min_length=1)] | None = None
    domains: list[str] | None = None
    tokens: Count = Field(default=32_768, ge=2)
    recall: list[str] | None = None
    recall_contexts: Annotated[list[Context], Field(min_length=1)] | None = None
    examples: int = Field(default=256, ge=1)
    split: Literal["validation", "test"] = "validation"
