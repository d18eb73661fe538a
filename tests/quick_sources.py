"""Syntax trees of edgekd's own files, which do not change while tests run: a run on an empty store reads all of them.

That is most of a second of each such run. What users write is read as ever.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1] / "edgekd") + "/"


def remember_sources() -> None:
    """From now on in this process, if digests are made here; otherwise nothing is loaded."""
    source = sys.modules.get("edgekd.models.source")
    if source is None or hasattr(source._code_of, "kept"):
        return
    before = source._code_of
    kept = functools.cache(before)

    @functools.wraps(before)
    def code_of(path: Path) -> tuple[str, frozenset[str]]:
        return kept(path) if str(path).startswith(_PACKAGE) else before(path)

    code_of.kept = kept  # type: ignore[attr-defined]
    source._code_of = code_of
