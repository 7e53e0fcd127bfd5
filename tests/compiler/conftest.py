from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.poison import poisoned_empty as poisoned_empty

from archsearch.compiler import recording, steps
from compiler.stepping import Again, Noted, may_replay


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Again]]:
    Again.made, Again.error, Again.running = [], None, False
    with monkeypatch.context() as patch:
        patch.setattr(recording, "Graph", Again)
        patch.setattr(steps, "Recording", Noted)
        patch.setattr(steps, "may_replay", may_replay)
        yield Again
