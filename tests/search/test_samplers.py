"""Proposals: rebuilt from a record they go on as before, and broken constraints are learnt."""

from pathlib import Path

import pytest

from archsearch.search.samplers import Proposer
from archsearch.search.space import Candidate, SearchSpace, read_space

SPACES = Path(__file__).parent / "spaces"


def space_with(sampler: str, tmp_path: Path, text: str | None = None) -> SearchSpace:
    path = tmp_path / f"{sampler}.yaml"
    text = text or (SPACES / "hybrid.yaml").read_text()
    path.write_text(text.replace("seed: 1", f"seed: 1, sampler: {sampler}, startup: 5"))
    return read_space(path)


def judge(space: SearchSpace, proposer: Proposer, trial: str, candidate: Candidate) -> bool:
    """Tell what training might have found; whether the candidate kept the constraints."""
    broken = {name: v for name, v in space.violations(candidate).items() if v > 0}
    if broken:
        proposer.reject(trial, broken)
        return False
    proposer.accept()
    if int(trial) % 7 == 3:
        proposer.reject(trial)
    elif int(trial) % 7 == 5:
        proposer.forget(trial)
    else:
        lr, mixture = candidate.params["training.lr"], candidate.params["data.mixture.mqar"]
        proposer.complete(trial, [mixture - 30 * lr, 4 + 100 * (lr - 0.003) ** 2 + mixture])
    return True


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "evolution", "random"])
def test_a_rebuilt_sampler_proposes_what_the_undisturbed_one_would(sampler: str, tmp_path: Path) -> None:
    space = space_with(sampler, tmp_path)
    undisturbed = Proposer(space)
    recorded = []
    for i in range(50):
        recorded.append(undisturbed.ask(str(i)))
        judge(space, undisturbed, str(i), recorded[-1])

    rebuilt = Proposer(space)
    for i, candidate in enumerate(recorded[:30]):
        assert rebuilt.replay(str(i), candidate.params).params == candidate.params
        judge(space, rebuilt, str(i), candidate)
    for i in range(30, 50):
        candidate = rebuilt.ask(str(i))
        assert candidate.params == recorded[i].params
        judge(space, rebuilt, str(i), candidate)


def test_proposals_depend_on_the_seed(tmp_path: Path) -> None:
    first = Proposer(space_with("random", tmp_path)).ask("0").params
    other = (SPACES / "hybrid.yaml").read_text().replace("seed: 1", "seed: 2")
    (tmp_path / "other.yaml").write_text(other)
    assert Proposer(read_space(tmp_path / "other.yaml")).ask("0").params != first


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_candidates_that_break_constraints_become_rarer(sampler: str, tmp_path: Path) -> None:
    """About half of the random candidates break one; the samplers never see those trained."""
    space = space_with(sampler, tmp_path)
    kept = {}
    for kind in (sampler, "random"):
        proposer = Proposer(space_with(kind, tmp_path))
        found = [judge(space, proposer, str(i), proposer.ask(str(i))) for i in range(120)]
        kept[kind] = sum(found[60:])
    assert kept["random"] < 45
    assert kept[sampler] > kept["random"] + 8, kept


def test_after_many_idle_proposals_one_is_drawn_at_random(tmp_path: Path) -> None:
    """A sampler that has settled on one candidate of a small space must not be asked for ever."""
    text = (
        "arch:\n  tokenizer: bytes\n  d_model: 16\n  layers:\n"
        "    - mlp: {hidden: {$int: [1, 12]}}\nsearch: {seed: 1}\n"
    )
    space = space_with("tpe", tmp_path, text)
    proposer = Proposer(space)
    seen: set[int] = set()
    for i in range(150):
        candidate = proposer.ask(str(i))
        hidden = candidate.params["arch.layers.0.mlp.hidden"]
        if hidden not in seen:
            proposer.accept()
        seen.add(hidden)
        proposer.complete(str(i), [float(hidden == 3), float(hidden != 3)])
    assert seen == set(range(1, 13))
