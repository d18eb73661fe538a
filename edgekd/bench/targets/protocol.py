"""What every device that measures offers: probe, push, run, fetch, clean up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class Place(Protocol):
    """A fresh folder on a device, gone with everything in it when the device is left."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What the device says of itself, see `bench.probe.facts`."""
        ...

    def push(self, path: Path, name: str) -> str:
        """Bring a file there, its digest compared; returns what a job calls it."""

    def push_build(self, path: Path, name: str) -> str:
        """Bring the folder of a build there as folder `name`; returns what a job calls the build's own file."""

    def where(self, name: str) -> str:
        """What a job calls a file that it is to leave under this name."""

    def run(
        self,
        job: Mapping[str, Any],
        *,
        limit_s: float,
        progress: Callable[[str], None],
        leaves: Mapping[str, Path] = ...,
    ) -> dict[str, Any]:
        """The agent's result of a job, ended after `limit_s` seconds; `leaves`: files of it, and where to put them."""

    def forget(self, *names: str) -> None:
        """Free the room of files and folders that no job needs any more."""

    def fetch(self, name: str, to: Path) -> None:
        """Bring a file that a job left back, its digest compared."""


class Target(Protocol):
    """A device."""

    def probe(self, runtimes: Sequence[str]) -> dict[str, Any]:
        """What it says of itself (see `bench.probe.facts`), and `missing`: what cannot be measured for, with commands.

        Each entry of `missing` is {"what", "command"}; empty: everything that these engines need is there.

        Raises:
            UnavailableError: it refuses us, is not the device that it was, or has no Python.
            TryAgainError: it cannot be reached.
        """

    def open(self, runtimes: Sequence[str]) -> AbstractContextManager[Place]:
        """A place to measure builds of these engines; raises as `probe` does, and for anything that is missing."""
