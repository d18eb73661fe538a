"""Checkpoints of a run of phases: written whole after each epoch, so that a killed run goes on bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgekd.files import replace_atomic

_FILE = "checkpoint.pt"


@dataclass
class Progress:
    """Where training stands: phase and epoch that come next, curves so far, and the states to go on from."""

    phase: int = 0
    epoch: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    learners: list[list[dict[str, Any]]] = field(default_factory=list)
    best: float | None = None
    kept: dict[str, Any] | None = None


def save(progress: Progress, folder: Path) -> None:
    """Write a checkpoint in place of the last one."""
    state = vars(progress)
    replace_atomic(folder / _FILE, lambda path: torch.save(state, path))


def load(folder: Path) -> Progress | None:
    """The last checkpoint, or None. A file that cannot be read is no checkpoint: training starts over."""
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        return Progress(**torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, TypeError, EOFError, ValueError, OSError):
        path.unlink(missing_ok=True)
        return None
