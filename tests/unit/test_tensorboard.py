"""Curves in TensorBoard: what its own reader finds is what the curves hold, each point once."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import UnavailableError, install_hint
from edgekd.report.tensorboard import Board, check_installed, points

CURVES: list[dict[str, Any]] = [
    {"name": "alone", "epochs": [1, 2], "terms": {"ce": [2.0, 1.5]}, "metrics": {"accuracy": [0.5, 0.625]},
     "lr": [1, 0.5]},
    {"name": "average", "epochs": [], "terms": {}, "metrics": {}, "lr": []},
    {"name": "together", "epochs": [1], "terms": {"ce": [1.25], "kd head": [0.25]}, "metrics": {}, "lr": [0.25]},
]  # fmt: skip


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that TensorBoard finds in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


EXPECTED = {
    "loss/alone/ce": [(1, 2.0), (2, 1.5)],
    "metric/alone/accuracy": [(1, 0.5), (2, 0.625)],
    "learning_rate/alone": [(1, 1.0), (2, 0.5)],
    "loss/together/ce": [(3, 1.25)],
    "loss/together/kd head": [(3, 0.25)],
    "learning_rate/together": [(3, 0.25)],
}


def shorter(epochs: int) -> list[dict[str, Any]]:
    """The first phase after some epochs."""
    phase = CURVES[0]
    cut = {kind: {name: values[:epochs] for name, values in phase[kind].items()} for kind in ("terms", "metrics")}
    return [{**phase, **cut, "epochs": phase["epochs"][:epochs], "lr": phase["lr"][:epochs]}]


def test_tensorboard_reads_the_curves_with_steps_that_go_on_over_phases(tmp_path: Path) -> None:
    board = Board(tmp_path / "distill")
    board.show(CURVES)
    board.close()
    assert read(tmp_path / "distill") == EXPECTED


def test_points_can_be_read_after_each_epoch_and_come_once(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for epochs in (0, 1, 2, 2):
        board.show(shorter(epochs))
        assert [step for step, _ in read(tmp_path).get("loss/alone/ce", [])] == list(range(1, epochs + 1))
    board.show(CURVES)
    assert read(tmp_path) == EXPECTED
    board.close()


def test_a_run_that_goes_on_writes_no_point_twice(tmp_path: Path) -> None:
    killed = Board(tmp_path)
    killed.show(shorter(1))
    (file,) = tmp_path.iterdir()
    with file.open("ab") as stream:
        stream.write(b"half a rec")  # it died while it wrote
    resumed = Board(tmp_path)
    resumed.show(shorter(2))
    resumed.show(CURVES)
    assert read(tmp_path) == EXPECTED
    assert len([*tmp_path.iterdir()]) == 1
    killed.close()
    resumed.close()


def test_a_metric_without_a_value_is_shown_as_not_a_number(tmp_path: Path) -> None:
    phase = {"name": "p", "epochs": [1], "terms": {}, "metrics": {"auc": [None]}, "lr": [0.1]}
    assert len([*points([phase])]) == 2
    board = Board(tmp_path)
    board.show([phase])
    board.close()
    assert math.isnan(read(tmp_path)["metric/p/auc"][0][1])


def test_without_the_package_the_command_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UnavailableError, match="tensorboard is not installed") as caught:
        check_installed()
    assert caught.value.hint == install_hint("tensorboard", "tensorboard")
