"""Checkpoints of a run of phases: written whole after each epoch, so that a killed run goes on bit for bit."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgekd.files import write_atomic

_FILE = "checkpoint.pt"
_DIGEST_BYTES = 32


@dataclass
class Progress:
    """Where training stands: phase and epoch that come next, curves so far, and the states to go on from.

    `decisions` are those of edits, by "<phase>/<number>": what cannot be decided again before models are trained.
    """

    phase: int = 0
    epoch: int = 0
    curves: list[dict[str, Any]] = field(default_factory=list)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    learners: list[list[dict[str, Any]]] = field(default_factory=list)
    scalers: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    kept: dict[str, Any] | None = None
    stale: int = 0
    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)


def save(progress: Progress, folder: Path) -> None:
    """Write a checkpoint in place of the last one; its digest goes before it."""
    buffer = io.BytesIO()
    torch.save(vars(progress), buffer)
    content = buffer.getvalue()
    write_atomic(folder / _FILE, hashlib.sha256(content).digest() + content)


def load(folder: Path) -> Progress | None:
    """The last checkpoint, or None. One whose digest is wrong is no checkpoint: training starts over."""
    path = folder / _FILE
    if not path.exists():
        return None
    data = path.read_bytes()
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        path.unlink()
        return None
    return Progress(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
