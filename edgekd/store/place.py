"""Which store a command works on: a folder, whether it is written to, and a remote second level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekd.store.readonly import ReadOnlyStore
from edgekd.store.store import Level, Store

if TYPE_CHECKING:
    from edgekd.store.remote import RemoteStore

StoreMode = Literal["ro", "rw"]


@dataclass(frozen=True)
class StorePlace:
    """What the command line says of the store. `remote` is an fsspec URL."""

    folder: Path
    mode: StoreMode = "rw"
    remote: str | None = None

    def open(self, scratch: Path, tell: Callable[[str], None] = lambda text: None) -> Store:
        """The store to work in: the folder itself, or with mode `ro` a private one in `scratch`, which reads from it.

        Raises:
            ConfigError: the remote URL makes no sense.
            UnavailableError: a package that it needs is missing.
        """
        levels: list[Level] = []
        if self.mode == "ro":
            shared = ReadOnlyStore(self.folder, tell)
            shared.lend_notes(scratch)
            levels.append(shared)
        remote = self._remote(tell)
        if remote is not None:
            levels.append(remote)
        store = Store(scratch if self.mode == "ro" else self.folder, behind=levels)
        store.tell = tell
        store.pushes = remote.push if remote is not None and self.mode == "rw" else None
        return store

    def _remote(self, tell: Callable[[str], None]) -> RemoteStore | None:
        if self.remote is None:
            return None
        from edgekd.store.remote import RemoteStore

        return RemoteStore(self.remote, tell)
