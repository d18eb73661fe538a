"""Read the files that a report points to: samples, loss curves and other details. What cannot be read is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekd.report.schema import Latency, Report
from edgekd.report.table import Rows
from edgekd.report.words import number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgekd.bench.statistics import Samples

_LARGEST_FILE = 50_000_000
_MOST_ROWS, _MOST_COLUMNS = 20, 12


@dataclass(frozen=True)
class Curve:
    """One quantity over the epochs of one phase; an epoch without a value holds NaN."""

    label: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class PhaseCurves:
    """The curves of one phase: what was minimised (without its weights), what was measured, and the learning rate."""

    name: str
    terms: list[Curve]
    metrics: list[Curve]
    rates: list[Curve]


@dataclass(frozen=True)
class Launch:
    """One build in one launch: when each visit began (V,), and the samples of these visits."""

    start_ns: NDArray[np.int64]
    samples: Samples


@dataclass(frozen=True)
class Attachment:
    """A detail that could be read: its kind, its flat rows, and whose it is (" of .." or nothing)."""

    kind: str
    of: str
    rows: list[dict[str, Any]]
    content: Mapping[str, Any]

    def further(self, name: str) -> list[dict[str, Any]]:
        """Further rows under another name."""
        return [row for row in _list(self.content.get(name)) if isinstance(row, dict)]


def attachments(report: Report, folder: Path, *kinds: str) -> list[Attachment]:
    """Every detail of some kinds that holds rows: a JSON list of flat mappings, or one under "rows"."""
    found = []
    for detail in report.details:
        content = _json(folder, detail.path) if detail.kind in kinds else None
        records = [r for r in _list(_dict(content).get("rows") or content) if isinstance(r, dict)]
        if records:
            place = PurePosixPath(detail.path).parent
            of = f" of {place.name}" if len(place.parts) > 1 else ""
            found.append(Attachment(detail.kind, of, records, _dict(content)))
    return found


def loss_curves(report: Report, folder: Path) -> list[PhaseCurves]:
    """Every phase of every detail of kind loss_curves.

    A file holds `{"phases": [{"name", "epochs": [..], "terms": {label: [..]}, "weights": {label: [..]},
    "metrics": {name: [..]}, "lr": [..]}]}`; that of a network is called `<role>.curves.json`.
    """
    phases: list[PhaseCurves] = []
    for detail in report.details:
        content = _json(folder, detail.path) if detail.kind == "loss_curves" else None
        for phase in map(_dict, _list(_dict(content).get("phases"))):
            role, ending, _ = PurePosixPath(detail.path).name.partition(".curves.json")
            name = str(phase.get("name", ""))
            epochs, weights = _list(phase.get("epochs")), _dict(phase.get("weights"))
            terms = {_weighted(label, weights): values for label, values in _dict(phase.get("terms")).items()}
            shown = (terms, _dict(phase.get("metrics")), {"learning rate": phase.get("lr")})
            curves = [_curves(epochs, values) for values in shown]
            phases.append(PhaseCurves(f"{role}, {name}" if ending else name, *curves))
    return phases


def _weighted(label: Any, weights: Mapping[Any, Any]) -> str:
    """A term with the weight that it had, or between which it rose."""
    known = [w for w in map(_float, _list(weights.get(label))) if math.isfinite(w)]
    if not known:
        return str(label)
    ends = dict.fromkeys((number(min(known)), number(max(known))))
    return f"{label}, weight {' to '.join(ends)}"


def detail_tables(report: Report, folder: Path, *wanted: str) -> list[tuple[str, Rows]]:
    """The first rows of every other detail (or of some kinds) as a table; ladder, long runs and layers are
    shown elsewhere."""
    kinds = set(wanted) or {detail.kind for detail in report.details} - {"loss_curves", "ladder", "sustain"}
    tables: list[tuple[str, Rows]] = []
    for detail in attachments(report, folder, *kinds):
        records = detail.rows
        if detail.kind == "layers" and any("ms" in record for record in records):
            continue
        columns = list(dict.fromkeys(key for record in records[:_MOST_ROWS] for key in record))[:_MOST_COLUMNS]
        if columns:
            body = [[_plain(record.get(column)) for column in columns] for record in records[:_MOST_ROWS]]
            left_out = f" (first {_MOST_ROWS} of {len(records)})" if len(records) > _MOST_ROWS else ""
            count = detail.content.get("samples")
            about = f", {count} samples" if isinstance(count, int) else ""
            tables.append((f"{detail.kind}{detail.of}{about}{left_out}", [columns, *body]))
    return tables


def samples(row: Latency, folder: Path) -> NDArray[np.float64] | None:
    """Wall times of single inferences in milliseconds, sorted; null when there are none to read."""
    file = _inside(folder, row.samples_path) if row.samples_path else None
    if file is None:
        return None
    import zipfile

    import numpy as np

    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            times = _times_ms(archive, row.model)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    times = np.sort(times[np.isfinite(times) & (times > 0)])
    return times if times.size >= 2 else None


def launches(row: Latency, folder: Path) -> list[Launch]:
    """What the measuring loop kept of a build, launch by launch; none where the file is not there or not its."""
    file = _inside(folder, row.samples_path) if row.samples_path else None
    if file is None:
        return []
    import zipfile

    import numpy as np

    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            count = sum(key.endswith("/wall_ns") for key in archive)
            return [_launch(archive, index) for index in range(count)]
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, zipfile.BadZipFile):
        return []


def _launch(archive: Mapping[str, NDArray[Any]], index: int) -> Launch:
    import numpy as np

    from edgekd.bench.statistics import Samples

    names = ("start_ns", "wall_ns", "visit_cpu_ns", "visit_switches")
    start, wall, cpu, switches = (np.asarray(archive[f"{index}/{name}"], dtype=np.int64) for name in names)
    if wall.ndim != 2 or len(wall) < 2 or wall.size == 0 or not len(wall) == len(start) == len(cpu) == len(switches):
        raise ValueError("not what the measuring loop writes")
    even = len(wall) // 2 * 2  # two visits are a round
    return Launch(start, Samples(wall[:even], cpu[:even], switches[:even]))


def launch_notes(row: Latency, folder: Path) -> list[dict[str, Any]]:
    """What each launch of a target noted beside the samples: machine, order, monitor; none without that file."""
    path = PurePosixPath(row.samples_path).with_name("launches.json") if row.samples_path else None
    return [note for note in _list(_json(folder, str(path))) if isinstance(note, dict)] if path else []


def further_rows(report: Report, name: str) -> list[dict[str, Any]]:
    """Rows of a list that not every report has (throughput, load); none where it is missing."""
    rows = getattr(report, name, None) or ()
    return [row if isinstance(row, dict) else row.model_dump() for row in rows]


def _times_ms(archive: Mapping[str, NDArray[Any]], model: str) -> NDArray[np.float64]:
    import numpy as np

    if model in archive:
        return np.asarray(archive[model], dtype=np.float64).ravel()
    # What the measuring loop keeps: a file per build, with integer nanoseconds per launch.
    launches = [archive[key] for key in archive if key.endswith("/wall_ns")]
    return np.concatenate([np.asarray(ns, dtype=np.float64).ravel() for ns in launches]) / 1e6


def _inside(folder: Path, path: str) -> Path | None:
    # A report from elsewhere may hold anything: read plain files below its own folder only.
    file = (folder / path).resolve()
    try:
        readable = file.is_relative_to(folder.resolve()) and file.is_file() and file.stat().st_size <= _LARGEST_FILE
    except (OSError, ValueError):
        return None
    return file if readable else None


def _json(folder: Path, path: str) -> Any:
    file = _inside(folder, path)
    try:
        return json.loads(file.read_bytes()) if file and file.suffix == ".json" else None
    except (OSError, ValueError, RecursionError):
        return None


def _curves(epochs: list[Any], values: dict[Any, Any]) -> list[Curve]:
    curves = []
    for label, column in values.items():
        points = [(_float(x), _float(y)) for x, y in zip(epochs, _list(column), strict=False)]
        if points:
            curves.append(Curve(str(label), points))
    return curves


def _float(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _plain(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else json.dumps(value)
