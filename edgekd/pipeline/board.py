"""TensorBoard beside a run: which stages show curves there, live while they train or from the store (torch-free)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import UnavailableError
from edgekd.pipeline.schema import Pipeline, StageEntry, located
from edgekd.report.tensorboard import FOLDER, Board, check_installed
from edgekd.stages.kinds import KINDS
from edgekd.store import Artifact

_CURVES = "curves.json"


class StageBoard:
    """The curves of one stage in TensorBoard, or nowhere."""

    def __init__(self, board: Board | None = None) -> None:
        self._board = board

    @property
    def live(self) -> Callable[[Sequence[Mapping[str, Any]]], None] | None:
        """What is to be shown the curves after each epoch."""
        return self._board.show if self._board is not None else None

    def finish(self, artifact: Artifact) -> None:
        """Show all curves of the finished stage, also where another run has trained it."""
        if self._board is not None and _CURVES in artifact.files:
            self._board.show(json.loads(artifact.path(_CURVES).read_text())["phases"])

    def close(self) -> None:
        """Nothing more comes."""
        if self._board is not None:
            self._board.close()


def check_board(pipeline: Pipeline) -> None:
    """Raise UnavailableError where curves are to be shown and the package is missing."""
    if pipeline.settings.train.tensorboard:
        try:
            check_installed()
        except UnavailableError as error:
            raise located(pipeline, ("train", "tensorboard"), error) from None


def board_of(pipeline: Pipeline, entry: StageEntry, out: Path) -> StageBoard:
    """Where a stage's curves are shown, if anywhere."""
    shown = pipeline.settings.train.tensorboard and KINDS[entry.name].trains and entry.name != "model"
    return StageBoard(Board(out / FOLDER / entry.name) if shown else None)
