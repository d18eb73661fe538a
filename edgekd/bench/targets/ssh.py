"""A device over ssh as a target: one fresh folder, the same agent.pyz as here, nothing left behind."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from edgekd.bench.pack import AGENT, agent_bytes
from edgekd.bench.process import AgentDiedError, NoMemoryError, StoppedError, run_agent
from edgekd.bench.targets.address import Address
from edgekd.bench.targets.connection import PYTHONS, Connection, Interpreter
from edgekd.bench.targets.lacks import missing
from edgekd.bench.targets.refusals import lost
from edgekd.errors import BenchError, EdgekdError, TryAgainError, UnavailableError
from edgekd.files import sha256_file

_WAITS_S = (1.0, 4.0)
_PROBE_S = 120.0
_SPARE_S = 30.0
# $1: the folder, $2: the file. A folder inside is made when it is needed.
_PUSH = 'cd "$1" && mkdir -p "$(dirname "./$2")" && cat >"./$2"'
_REMOVE = 'cd "$1" && shift && for f in "$@"; do rm -rf "./$f"; done'
_FETCH = 'cd "$1" && cat "./$2"'
_DIGEST = (
    "import hashlib, sys\nh = hashlib.sha256()\nwith open(sys.argv[1], 'rb') as f:\n"
    "    [h.update(b) for b in iter(lambda: f.read(1 << 20), b'')]\nprint(h.hexdigest())"
)
# $1: the folder, $2: seconds, $3: the interpreter, $4: the agent. The number of the
# process is the keeper's, to end it. What an engine leaves in the folder for temporary files goes with ours.
_RUN = (
    'cd "$1" || exit 74; TMPDIR=$1; export TMPDIR; '
    'if command -v timeout >/dev/null 2>&1; then set -- timeout -k 5 "$2" "$3" "./$4"; '
    'else set -- "$3" "./$4"; fi; sh -c \'echo $$ >job.pid; exec "$@"\' sh "$@"; r=$?; rm -f job.pid; exit $r'
)

T = TypeVar("T")


@dataclass
class SshPlace:
    """The folder of an open connection. A connection that breaks is opened again, with all that had been pushed."""

    target: SshTarget
    connection: Connection
    python: Interpreter | None = None

    def __post_init__(self) -> None:
        self._pushed: dict[str, Path] = {}
        self._runtimes: tuple[str, ...] = ()
        self.about: Mapping[str, Any] = {}

    def push(self, path: Path, name: str) -> str:
        """Bring a file there, its digest compared. Jobs run in the folder, so its name there is `name`."""
        self._again(lambda: self._push(path, name))
        self._pushed[name] = path
        return name

    def push_build(self, path: Path, name: str) -> str:
        """Bring every plain file of the build's folder: a model may lie in several."""
        for file in sorted(path.parent.iterdir()):
            if file.is_file():
                self.push(file, f"{name}/{file.name}")
        return f"{name}/{path.name}"

    def where(self, name: str) -> str:
        """The name: jobs run in the folder."""
        return name

    def run(
        self,
        job: Mapping[str, Any],
        *,
        limit_s: float,
        progress: Callable[[str], None],
        leaves: Mapping[str, Path] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Run a job and bring back what it leaves; when the connection breaks meanwhile, run it again."""

        def work() -> dict[str, Any]:
            result = self._run(job, limit_s, progress)
            for name, to in leaves.items():
                self.fetch(name, to)
            return result

        return self._again(work)

    def fetch(self, name: str, to: Path) -> None:
        """Bring a file back, its digest compared. What a job left is gone with a connection that breaks."""
        expected = self._digest(name)
        with to.open("wb") as stream:
            self.connection.check(["sh", "-c", _FETCH, "sh", self.connection.folder, name], target=stream)
        if sha256_file(to) != expected:
            raise lost(self.target.address, f"{name} came back changed")

    def forget(self, *names: str) -> None:
        """Remove files and folders there, and send them no more; the next job finds out if the connection broke."""
        for pushed in list(self._pushed):
            if pushed in names or pushed.partition("/")[0] in names:
                del self._pushed[pushed]
        with contextlib.suppress(EdgekdError):
            self.connection.check(["sh", "-c", _REMOVE, "sh", self.connection.folder, *names])

    def choose(self, runtimes: Sequence[str]) -> dict[str, Any]:
        """Push the agent, and take the first interpreter that has all that is needed; its facts with `missing`."""
        self._runtimes = tuple(runtimes)
        found: list[tuple[int, int, dict[str, Any], Interpreter]] = []
        with tempfile.TemporaryDirectory(prefix="edgekd-agent-") as name:
            path = Path(name) / AGENT
            path.write_bytes(agent_bytes())
            self._push(path, AGENT)
        for python in self.connection.interpreters:
            self.python = python
            job = {"mode": "probe", "runtimes": list(runtimes)}
            try:
                facts = self._run(job, _PROBE_S, lambda line: None)
            except AgentDiedError:
                continue  # an interpreter that does not even run a program of the standard library
            facts["missing"] = missing(self.target.address, facts)
            found.append((len(facts["missing"]), len(found), facts, python))
            if not facts["missing"]:
                break
        if not found:
            raise UnavailableError(
                f"{self.target.address}: no Python of the device runs the agent", hint="name one: target add --python"
            )
        _, _, facts, self.python = min(found, key=lambda one: one[:2])
        self.about = facts
        return facts

    def _push(self, path: Path, name: str) -> None:
        with path.open("rb") as stream:
            self.connection.check(["sh", "-c", _PUSH, "sh", self.connection.folder, name], source=stream)
        if self._digest(name) != sha256_file(path):
            raise lost(self.target.address, f"{name} arrived changed")

    def _digest(self, name: str) -> str:
        python = self.python or self.connection.interpreters[0]
        words = [python.path, "-c", _DIGEST, f"{self.connection.folder}/{name}"]
        return self.connection.check(words).decode("ascii", "replace").strip()

    def _run(self, job: Mapping[str, Any], limit_s: float, progress: Callable[[str], None]) -> dict[str, Any]:
        assert self.python is not None
        seconds = str(int(limit_s + _SPARE_S))
        words = ["sh", "-c", _RUN, "sh", self.connection.folder, seconds, self.python.path, AGENT]
        try:
            command, stop = self.connection.command(words), self.target.stop
            return run_agent(command, job, limit_s=limit_s, progress=progress, stop=stop)
        except AgentDiedError as error:
            if error.returncode == 255 or not self.connection.alive:
                raise lost(self.target.address, error.said) from None
            if isinstance(error, NoMemoryError):
                error.message = f"{self.target.address}: {error.message}"
            raise self._full_disk(error.said) or error from None
        except BenchError as error:
            raise self._full_disk(error.message) or error from None

    def _full_disk(self, said: str) -> EdgekdError | None:
        return self.connection.failure(1, said) if "No space left" in said else None

    def _again(self, work: Callable[[], T]) -> T:
        for wait_s in self.target.waits_s:
            try:
                return work()
            except TryAgainError:
                self.target.pause(wait_s)
                self._reopen()
        return work()

    def _reopen(self) -> None:
        self.connection.close()
        self.connection = self.target.connect()
        require(str(self.target.address), self.choose(self._runtimes))
        for name, path in self._pushed.items():
            self._push(path, name)


@dataclass(frozen=True)
class SshTarget:
    """A device at an address.

    `python`: the interpreter there; None: the first of `pythons` that has numpy and the engines. `config`: a file for
    `ssh -F` in place of the user's own. `waits_s`: pauses before it is tried again. `stop`: ends what is measured, from
    another thread.
    """

    address: Address
    python: str | None = None
    config: Path | None = None
    pythons: tuple[str, ...] = PYTHONS
    waits_s: tuple[float, ...] = _WAITS_S
    stop: threading.Event | None = None

    def connect(self) -> Connection:
        """A connection; a device that cannot be reached is tried again after each of `waits_s`."""
        for wait_s in self.waits_s:
            try:
                return self._connect()
            except TryAgainError:
                self.pause(wait_s)
        return self._connect()

    def pause(self, seconds: float) -> None:
        """Wait, unless another thread ends it."""
        if (self.stop or threading.Event()).wait(seconds):
            raise StoppedError("stopped")

    def _connect(self) -> Connection:
        connection = Connection(self.address, self.config, (self.python,) if self.python else self.pythons)
        connection.open()
        return connection

    @contextlib.contextmanager
    def _visit(self) -> Iterator[SshPlace]:
        place = SshPlace(self, self.connect())
        try:
            yield place
        finally:
            place.connection.close()

    def probe(self, runtimes: Sequence[str]) -> dict[str, Any]:
        """What the device says of itself."""
        with self._visit() as place:
            return place.choose(runtimes)

    @contextlib.contextmanager
    def open(self, runtimes: Sequence[str]) -> Iterator[SshPlace]:
        """A place to measure builds of these engines."""
        with self._visit() as place:
            require(str(self.address), place.choose(runtimes))
            yield place


def require(name: str, facts: Mapping[str, Any]) -> None:
    """Raise UnavailableError for the first thing that a device lacks, with the command that brings it."""
    for lack in facts["missing"]:
        raise UnavailableError(
            f"{name} has no {lack['what']} for {facts['executable']} (Python {facts['python']})",
            hint=lack["command"],
        )
