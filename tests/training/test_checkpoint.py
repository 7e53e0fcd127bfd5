"""A checkpoint is whole, whenever its writer is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from archsearch.training import checkpoint


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert checkpoint.load(path, "cpu") is None
    state: dict[str, Any] = {"model": {"w": torch.arange(3.0)}, "step": 4, "seconds": 1.5}
    checkpoint.save_atomically(state, path)
    found = checkpoint.load(path, "cpu")
    assert found is not None
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    assert (found["step"], found["seconds"]) == (4, 1.5)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_atomically({"step": 1}, path)

    def torn(state: object, file: object) -> None:
        file.write(b"half of it")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save_atomically({"step": 2}, path)
    monkeypatch.undo()
    assert checkpoint.load(path, "cpu") == {"step": 1}


def test_a_kill_between_writing_and_replacing_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_atomically({"step": 1}, path)
    code = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from archsearch.training import checkpoint
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save_atomically({{"step": 2}}, Path({str(path)!r}))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert checkpoint.load(path, "cpu") == {"step": 1}
    checkpoint.save_atomically({"step": 3}, path)
    assert checkpoint.load(path, "cpu") == {"step": 3}
