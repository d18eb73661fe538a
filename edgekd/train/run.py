"""How phases are run, and what is said while they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from edgekd.data.views import Views
from edgekd.train.distributed import Ranks
from edgekd.train.guides import OutputCache


@dataclass(frozen=True)
class Epoch:
    """What a progress line shows; `done` is the share of the epoch that is over, 1 at its end."""

    phase: str
    epoch: int
    epochs: int
    loss: float
    metrics: Mapping[str, float]
    samples_per_s: float
    seconds_left: float
    done: float = 1.0


@dataclass(frozen=True)
class Run:
    """How phases are run.

    Attributes:
        batch: samples per step, over all processes and accumulated parts.
        compile: off, default, graphs, or auto (precision.choose_compile).
        folder: where checkpoints go.
        tell: told after each epoch.
        show: shown about every second within an epoch; it costs a wait for the device.
        caches: of frozen models' outputs, by the model's name.
        cached: tables whose samples the caches are of.
        ranks: this process among those that train together.
        memory: share of a GPU's free memory that one table may take to live there.
    """

    seed: int
    batch: int
    device: torch.device
    precision: str
    views: Views
    folder: Path | None = None
    tell: Callable[[Epoch], None] | None = None
    show: Callable[[Epoch], None] | None = None
    caches: Mapping[str, OutputCache] = field(default_factory=dict)
    cached: tuple[str, ...] = ("train",)
    ranks: Ranks = field(default_factory=Ranks)
    accumulate: int = 1
    compile: str = "off"
    sync_batchnorm: bool = False
    memory: float = 0.5
