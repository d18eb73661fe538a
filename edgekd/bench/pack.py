"""agent.pyz: the measuring agent as one file, made of the very files that stand here; nothing is written twice.

The same sources give the same bytes on every machine: sorted names, one date, no compression (zlib's output differs
between its versions). The file needs Python 3.8; to measure it also needs numpy and the engine.
"""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

from edgekd.files import sha256_bytes

AGENT = "agent.pyz"
_ROOT = Path(__file__).resolve().parents[1]
_OWN = (
    "__init__", "agent", "builds", "energy", "entry", "growth", "load", "load_jobs", "loop", "machine", "nvml", "probe",
    "sustain",
)  # fmt: skip
_MAIN = "from edgekd.bench.entry import main\n\nmain()\n"
_SHEBANG = b"#!/usr/bin/env python3\n"
_DATE = (1980, 1, 1, 0, 0, 0)


def carried() -> list[Path]:
    """The files that go to a device: the engine adapters, the measuring loop, the errors."""
    own = [_ROOT / "bench" / f"{name}.py" for name in _OWN]
    return sorted([_ROOT / "__init__.py", _ROOT / "errors.py", *own, *(_ROOT / "runtimes").glob("*.py")])


@functools.lru_cache(maxsize=1)
def agent_bytes() -> bytes:
    """The bytes of agent.pyz."""
    files = {path.relative_to(_ROOT.parent).as_posix(): path.read_text(encoding="utf-8") for path in carried()}
    buffer = io.BytesIO()
    buffer.write(_SHEBANG)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in sorted({**files, "__main__.py": _MAIN}.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # the same on Windows
            archive.writestr(entry, text.encode())
    return buffer.getvalue()


def agent_digest() -> str:
    """sha256 of agent.pyz: it stands in the key of every measurement."""
    return sha256_bytes(agent_bytes())
