"""Loss curves as TensorBoard reads them: one file of events per stage, written again from the curves by every run."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edgekd.errors import UnavailableError, install_hint

FOLDER = "tensorboard"
_KINDS = {"terms": "loss", "metrics": "metric"}
_Point = tuple[str, int, float]


def check_installed() -> None:
    """Raise UnavailableError where the extra is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UnavailableError("tensorboard is not installed", hint=install_hint("tensorboard", "tensorboard"))


class Board:
    """The events of one stage in a folder of their own; those of earlier runs are removed first.

    tensorboard's own SummaryWriter needs TensorFlow, torch's needs torch, which a cached run does not load. Only the
    record format and the messages of the package are used here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._written = 0

    def show(self, curves: Sequence[Mapping[str, Any]]) -> None:
        """Write what is new in the curves of all phases so far; it can be read at once."""
        file = self._file = self._file or self._open()
        found = list(points(curves))
        for tag, step, value in found[self._written :]:
            file.write(_scalar(tag, step, value))
        self._written = len(found)
        file.flush()

    def close(self) -> None:
        """Nothing more comes."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob("events.out.tfevents.*"):
            old.unlink()
        # Another name each time: a TensorBoard that is watching goes on reading a file it has open.
        file = (self._folder / f"events.out.tfevents.{time.time_ns()}.edgekd").open("xb")
        file.write(_event(file_version="brain.Event:2"))
        return file


def points(curves: Sequence[Mapping[str, Any]]) -> Iterator[_Point]:
    """Tag, step and value of every point, epoch by epoch; steps are epochs, counted on over the phases."""
    before = 0
    for phase in curves:
        name, count = phase["name"], len(phase["epochs"])
        lines = {
            f"{word}/{name}/{label}": values for kind, word in _KINDS.items() for label, values in phase[kind].items()
        }
        lines[f"learning_rate/{name}"] = phase["lr"]
        for at in range(count):
            yield from ((tag, before + at + 1, values[at]) for tag, values in lines.items() if at < len(values))
        before += count


def _scalar(tag: str, step: int, value: float) -> bytes:
    from tensorboard.compat.proto.summary_pb2 import Summary

    plain = float(value) if value is not None else math.nan
    return _event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=plain)]))


def _event(**content: Any) -> bytes:
    """An event as a record: its length and its bytes, each with a checksum."""
    import io

    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
    return record.getvalue()
