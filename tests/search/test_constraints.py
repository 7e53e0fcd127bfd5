"""Constraints: what can be written, and how far a candidate is from keeping them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archsearch.experiment.spec import Experiment
from archsearch.search.constraints import OPERATORS, parse_constraint, violations
from archsearch.search.costs import CandidateCosts
from archsearch.spec import model_cost
from archsearch.spec.cost_names import COSTS, CostName


@pytest.fixture
def costs() -> CandidateCosts:
    arch = {
        "tokenizer": "bytes",
        "d_model": 32,
        "embedding": {"positions": {"learned": 256}},
        "layers": [{"attention": {"heads": 2}}],
    }
    return CandidateCosts(Experiment.model_validate({"arch": arch}))


@given(
    st.sampled_from(COSTS),
    st.none() | st.integers(1, 10**6),
    st.sampled_from(OPERATORS),
    st.sampled_from([("2M", 2e6), ("64KiB", 65536), ("1_500", 1500), ("3e5", 3e5), ("0.5 MB", 5e5)]),
    st.sampled_from(["", " "]),
)
def test_what_is_written_is_what_is_read(
    metric: str, context: int | None, operator: str, limit: tuple[str, float], gap: str
) -> None:
    name = metric if context is None else f"{metric}@{context}"
    found = parse_constraint(f"{name}{gap}{operator}{gap}{limit[0]}")
    assert (found.name, found.operator, found.limit) == (CostName(metric, context), operator, limit[1])
    assert str(found.name) == name


@given(st.text(alphabet="paramsste_by@12<>=!KM() .,'\"\\", max_size=30))
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    reason = ""
    try:
        parse_constraint(text)
    except ValueError as error:
        reason = str(error)
    assert "\n" not in reason
    if not reason:
        assert re.fullmatch(r"\s*(params|state_bytes)(@\d+)?\s*(<=|>=|<|>)\s*[\d.]+\s*[KMBkmb]*\s*", text)


def test_violations_are_shares_of_the_limit(costs: CandidateCosts) -> None:
    params = model_cost(costs.experiment.arch, context=1).total.params
    assert parse_constraint(f"params <= {params}").violation(costs) == 0
    assert 0 < parse_constraint(f"params < {params}").violation(costs) < 1e-6
    assert parse_constraint(f"params <= {params // 2}").violation(costs) == pytest.approx(1, rel=1e-3)
    assert parse_constraint(f"params >= {params * 2}").violation(costs) == pytest.approx(0.5)
    assert parse_constraint(f"params > {params - 1}").violation(costs) == 0


def test_a_context_is_the_one_named_or_the_longest_scored(costs: CandidateCosts) -> None:
    arch = costs.experiment.arch
    assert costs(CostName("state_bytes", 64)) == model_cost(arch, 64).total.state_bytes
    assert costs(CostName("state_bytes")) == model_cost(arch, 128).total.state_bytes


def test_beyond_the_learned_positions_is_broken(costs: CandidateCosts) -> None:
    constraint = parse_constraint("state_bytes@512 <= 1GiB")
    assert violations([constraint], costs) == {"state_bytes@512 <= 1GiB": 1.0}
