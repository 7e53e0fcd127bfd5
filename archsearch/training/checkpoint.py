"""Checkpoints that a kill at any moment leaves whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that `path` always holds a whole checkpoint: the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path, device: str) -> dict[str, Any] | None:
    """The checkpoint at `path`, or None where there is none."""
    if not path.exists():
        return None
    return torch.load(path, map_location=device, weights_only=True)
