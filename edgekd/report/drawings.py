"""The drawings of report.html, remembered from run to run: most runs change none of the samples that they show."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekd import bench
from edgekd.files import sha256_file, sha256_json, write_atomic
from edgekd.report.schema import Report, Timing

Drawings = list[tuple[str, list[str]]]
_KEPT = 8  # runs; a page's drawings take some 50 kB
_CODE = (Path(__file__).parent, Path(bench.__file__).parent)
_NEVER = datetime.fromtimestamp(0, UTC)


class Remembered:
    """Drawings by all that they are made of, in a small JSON file.

    It only saves work: a file that cannot be read counts as empty, and one that cannot be written is let be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def drawings(self, report: Report, manifest: Mapping[str, Any], draw: Callable[[Report], Drawings]) -> Drawings:
        """What `draw` makes of a report, or made of the same one: the same numbers, files and code.

        `manifest` has the digests of the files that the report points to. The report is drawn without what is another
        in every run (time, duration, what became of the stages, commit), so no drawing can show that.
        """
        always = {"created": _NEVER, "seconds": 0.0, "timing": Timing(), "stages": (), "git": None}
        drawn = report.model_copy(update=always)
        files = {name: about["sha256"] for name, about in manifest["files"].items()}
        sources = [path for folder in _CODE for path in sorted(folder.glob("*.py"))]
        code = {f"{path.parent.name}/{path.name}": sha256_file(path) for path in sources}
        key = sha256_json([drawn.model_dump(mode="json"), files, code])
        known = self._read()
        found = _checked(known.get(key))
        if found is None:
            found = draw(drawn)
            kept = dict(list(known.items())[-(_KEPT - 1) :])
            with contextlib.suppress(OSError):
                write_atomic(self._path, json.dumps({**kept, key: found}), durable=False)
        return found

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(self._path.read_bytes())
            return content if isinstance(content, dict) else {}
        return {}


def _checked(value: Any) -> Drawings | None:
    """Drawings as they were written; None for anything else."""
    try:
        groups = [(title, list(found)) for title, found in value]
    except (TypeError, ValueError):
        return None
    texts = [text for title, found in groups for text in (title, *found)]
    return groups if all(isinstance(text, str) for text in texts) else None
