"""A fixture for every room that builds modules: memory that nobody wrote reads as NaN.

`torch.empty` is where parameters come from; one that is read before it is drawn poisons the outputs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

# torch notes which functions make tensors when a device context first asks, and keeps the note: had it found
# the fixture's in the place of torch.empty, `with torch.device("meta")` would give memory ever after.
with torch.device("meta"):
    torch.empty(())


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
