"""A store that is read and never written to: what a run takes from it is copied, verified, into a store of its own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from edgekd.files import replace_atomic
from edgekd.store.artifact import META, Artifact, Place, parse_meta, problems_of


class ReadOnlyStore:
    """A folder of artefacts that belongs to others. `tell` takes warnings."""

    place: Place = "local"

    def __init__(self, root: Path, tell: Callable[[str], None] = lambda text: None) -> None:
        self.root, self.tell = root, tell

    def peek(self, key: str) -> Artifact | None:
        """What is known of an artefact; its files are not read."""
        folder = self.root / "objects" / key[:2] / key
        try:
            return parse_meta(key, folder, (folder / META).read_bytes(), self.place)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._refuse(key, str(error))
            return None

    def fetch(self, key: str, folder: Path) -> Artifact | None:
        """Copy the files of an artefact and verify the copies; None where there is none, or it is damaged."""
        artifact = self.peek(key)
        if artifact is None:
            return None
        copied = Artifact(**{**vars(artifact), "folder": folder})
        for name in artifact.files:
            copied.path(name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(artifact.path(name), copied.path(name))
        wrong = problems_of(copied)
        if wrong:
            self._refuse(key, wrong[0])
        return None if wrong else copied

    def lend_notes(self, root: Path) -> None:
        """Copy what saves work (digests, drawings) and what tells changes, where `root` has none yet."""
        last = [f"last/{path.name}" for path in self.root.glob("last/*.json")]
        names = ["memo.json", "sources.json", "drawings.json", *last]
        for name in names:
            source = self.root / name
            if source.is_file() and not (root / name).exists():
                replace_atomic(root / name, lambda new, source=source: shutil.copyfile(source, new))  # type: ignore[misc]

    def _refuse(self, key: str, wrong: str) -> None:
        self.tell(f"the read-only store holds a damaged artefact, {key[:12]}: {wrong}; it is left as it is, not used")
