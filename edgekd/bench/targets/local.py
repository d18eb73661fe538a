"""This machine as a target: the same agent.pyz, in a process of its own."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekd.bench import probe
from edgekd.bench.pack import AGENT, agent_bytes
from edgekd.bench.process import run_agent
from edgekd.runtimes.registry import RUNTIMES


@dataclass(frozen=True)
class LocalPlace:
    """A folder of this machine. Files that are here already are not copied."""

    folder: Path
    stop: threading.Event | None = None

    @property
    def about(self) -> Mapping[str, Any]:
        """What this machine says of itself."""
        return probe.facts({"runtimes": list(RUNTIMES)})

    def push(self, path: Path, name: str) -> str:
        """The file as it lies."""
        return str(path.resolve())

    def push_build(self, path: Path, name: str) -> str:
        """The build as it lies."""
        return str(path.resolve())

    def where(self, name: str) -> str:
        """A path in the folder."""
        return str(self.folder / name)

    def run(
        self,
        job: Mapping[str, Any],
        *,
        limit_s: float,
        progress: Callable[[str], None],
        leaves: Mapping[str, Path] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Run the job with the Python that runs here; -P: nothing beside the agent hides the standard library."""
        command = [sys.executable, "-P", str(self.folder / AGENT)]
        result = run_agent(command, job, limit_s=limit_s, progress=progress, stop=self.stop)
        for name, to in leaves.items():
            self.fetch(name, to)
        return result

    def forget(self, *names: str) -> None:
        """Nothing was copied; the folder goes with all that jobs left in it."""

    def fetch(self, name: str, to: Path) -> None:
        """Take the file out of the folder."""
        shutil.move(self.folder / name, to)


@dataclass(frozen=True)
class Local:
    """The machine that edgekd runs on. `stop`: ends what is measured, from another thread."""

    stop: threading.Event | None = None

    def probe(self, runtimes: Sequence[str]) -> dict[str, Any]:
        """What the agent says of this machine; what an engine lacks here is said by `edgekd doctor`."""
        with self.open(runtimes) as place:
            facts = place.run({"mode": "probe", "runtimes": list(runtimes)}, limit_s=60, progress=lambda line: None)
        return {**facts, "missing": []}

    @contextlib.contextmanager
    def open(self, runtimes: Sequence[str]) -> Iterator[LocalPlace]:
        """A temporary folder with the agent in it."""
        with tempfile.TemporaryDirectory(prefix="edgekd-place-") as name:
            folder = Path(name)
            (folder / AGENT).write_bytes(agent_bytes())
            yield LocalPlace(folder, self.stop)
