"""What an experiment may leave to be worked out from its model, whose costs are exact:

    arch:     {match: {params: 1.5M, by: mlp.expand}}            a width, so that the model has this budget
    training: {flops: 1e15}                                      tokens, so that training costs so much
              {lr: {base: 3e-3, at: 256, scale: width}}          a learning rate, carried over widths

`resolve` writes the answers in their places; what is read from then on, and recorded, is plain numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from archsearch.evaluation.spec import EvaluationSpec
from archsearch.spec import ModelSpec, model_cost
from archsearch.spec.errors import refuse, shown, under, validate
from archsearch.spec.layers import Spec
from archsearch.spec.match import MATCH, matched, parse_match
from archsearch.spec.quantities import count_text, parse_count
from archsearch.training.spec import TrainingSpec

TRAINING_FLOPS = 3
"""Floating-point operations of a training step, in multiples of its forward pass: backward is about two."""

FLOPS, LR = "flops", "lr"
POWERS = {"width": 1.0, "sqrt_width": 0.5}


class LearningRateRule(Spec):
    """`lr = base * (at / d_model) ** power`: tuned at one width, carried over to others.

    base: the learning rate at the width `at`. at: the width (d_model) that `base` was tuned at. scale: width
    divides by the width itself, as muP does for Adam's matrices (arXiv 2203.03466), here for all parameters
    alike; sqrt_width by its square root.
    """

    base: float = Field(gt=0)
    at: int = Field(ge=1)
    scale: Literal["width", "sqrt_width"] = "width"

    def rate(self, d_model: int) -> float:
        return self.base * (self.at / d_model) ** POWERS[self.scale]


def resolve(value: Any) -> Any:
    """An experiment's values with widths, tokens and learning rate worked out; unchanged without rules.

    Raises `ValidationError` located at the rule that cannot hold.
    """
    if not isinstance(value, Mapping):
        return value
    training = _mapping(value.get("training"))
    rules = {key: training[key] for key in (FLOPS, LR) if _is_rule(key, training.get(key))}
    if MATCH not in _mapping(value.get("arch")) and not rules:
        return value
    stated = {key: item for key, item in training.items() if key not in rules}
    plain = validate(TrainingSpec, stated, ("training",))
    scored = validate(EvaluationSpec, value.get("evaluation", {}), ("evaluation",))
    context = max(scored.contexts or [plain.context])
    arch = under("arch", lambda found: _model(found, context), value.get("arch"))
    if FLOPS in rules:
        if "tokens" in training:
            refuse(("training", FLOPS), "flops and tokens say the same thing; give one of them")
        stated["tokens"] = _tokens(rules[FLOPS], arch, plain)
    if LR in rules:
        rule = validate(LearningRateRule, rules[LR], ("training", LR))
        stated[LR] = float(f"{rule.rate(arch.d_model):.4g}")
    return {**value, "arch": arch} | ({"training": stated} if rules else {})


def training_flops(arch: ModelSpec, training: TrainingSpec) -> float:
    """Floating-point operations of training `arch`, forward and backward."""
    tokens = training.steps * training.tokens_per_step
    return TRAINING_FLOPS * model_cost(arch, training.context).total.flops * tokens


def _model(arch: Any, context: int) -> ModelSpec:
    """The model of an `arch` section, its free width solved."""
    if isinstance(arch, ModelSpec):
        return arch
    if not isinstance(arch, Mapping) or MATCH not in arch:
        return validate(ModelSpec, arch)
    match = under(MATCH, parse_match, arch[MATCH])
    rest = {key: item for key, item in arch.items() if key != MATCH}
    return matched(rest, match, context)


def _tokens(budget: Any, arch: ModelSpec, training: TrainingSpec) -> int:
    """Whole steps that the budget of operations pays for."""
    path = ("training", FLOPS)
    if isinstance(budget, str):
        try:
            budget = parse_count(budget)
        except ValueError as error:
            refuse(path, str(error))
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
        refuse(path, f"expected a number of operations such as 1e15, found {shown(budget)}")
    one_step = TRAINING_FLOPS * model_cost(arch, training.context).total.flops * training.tokens_per_step
    if budget < one_step:
        refuse(path, f"{count_text(budget)} FLOPs are less than one step's {count_text(one_step)}")
    return int(budget / one_step) * training.tokens_per_step


def _is_rule(key: str, item: Any) -> bool:
    return isinstance(item, Mapping) if key == LR else item is not None


def _mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or none where something else stands in its place: the section's own check will say so."""
    return value if isinstance(value, Mapping) else {}
