"""One connection to a device over the system's `ssh`, by argument lists: the user's keys, agents and jump hosts count.

The first process holds the connection and, on the device, a folder (see `keeper`); commands go through its socket.
Nothing but that folder is written there, and it is gone when the connection ends, whichever end ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekd.bench.targets.address import Address
from edgekd.bench.targets.refusals import explain, lost
from edgekd.errors import EdgekdError, StageError, UnavailableError

PYTHONS = ("python3", *(f"python3.{minor}" for minor in range(13, 7, -1)), "/usr/bin/python3")
_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "PasswordAuthentication=no",
    "KbdInteractiveAuthentication=no",
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "ForwardAgent=no",
    "ForwardX11=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "ControlPersist=no",
    "LogLevel=ERROR",
)
_HELLO_S = 40.0
_HEARTBEAT_S = 5.0
_LONGEST_SOCKET = 80  # a path of a socket has at most 104 to 108 bytes, and ssh first makes one with a longer name
# Python 2 runs it, too: it says nothing there.
_VERSION = (
    "import sys; sys.version_info >= (3, 8) and sys.stdout.write("
    "'.'.join(map(str, sys.version_info[:3])) + ' ' + sys.prefix)"
)
# $1: the keeper, $2: _VERSION, then names of interpreters. All that is not the script itself comes as arguments.
_HELLO = (
    'k=$1; v=$2; shift 2; f=; for c in "$@"; do p=$(command -v "$c") || continue; '
    "case $p in /*) ;; *) p=$PWD/$p ;; esac; "
    'i=$("$p" -c "$v" </dev/null 2>/dev/null) || continue; [ "$i" ] || continue; '
    'printf "edgekd-python %s\\t%s\\n" "$i" "$p"; [ "$f" ] || f=$p; done; '
    '[ "$f" ] || { echo "edgekd-nothing ."; exit 0; }; exec "$f" -c "$k"'
)


@dataclass(frozen=True)
class Interpreter:
    """A Python on the device."""

    path: str
    version: str


class Connection:
    """An open connection: `folder` on the device, and the interpreters found there, the default one first."""

    def __init__(self, address: Address, config: Path | None, pythons: Sequence[str]) -> None:
        self.address, self._config, self._pythons = address, config, pythons
        self.folder = ""
        self.interpreters: list[Interpreter] = []
        self._local = _short_folder()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._closing = threading.Event()

    def open(self) -> None:
        """Connect.

        Raises:
            UnavailableError: unknown or wrong host key, refused login, no Python, no `ssh` here.
            TryAgainError: the device cannot be reached.
            StageError: no folder can be made there.
        """
        try:
            self._start()
            self._greet()
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._beat, daemon=True).start()

    def command(self, words: Sequence[str]) -> list[str]:
        """Arguments that run `words` on the device through this connection."""
        return self._ssh("no", shlex.join(words))

    def check(self, words: Sequence[str], *, source: IO[bytes] | None = None, target: IO[bytes] | None = None) -> bytes:
        """Run `words` there with files as input and output; returns the output where `target` is None.

        Raises:
            TryAgainError: the connection was lost.
            StageError: the disk is full, or the command failed.
        """
        done = subprocess.run(
            self.command(words),
            stdin=source or subprocess.DEVNULL,
            stdout=target or subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise self.failure(done.returncode, done.stderr.decode("utf-8", "replace"))
        return done.stdout or b""

    def failure(self, returncode: int, said: str) -> EdgekdError:
        """The error behind a command that ended with this code and these words."""
        if returncode == 255 or not self.alive:
            return lost(self.address, said)
        if "No space left" in said or "Disk quota exceeded" in said:
            return StageError(
                f"{self.address}: no space left on the disk of the device",
                hint="free some space there; its folder for temporary files is used",
            )
        lines = [line for line in said.splitlines() if line.strip()]
        return StageError(
            f"{self.address}: a command failed there ({returncode}): {lines[-1] if lines else 'it said nothing'}",
            hint="`edgekd target check` shows what the device has",
        )

    @property
    def alive(self) -> bool:
        """Whether the connection still stands; one that is just breaking gets a moment to be noticed."""
        if self._keeper is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout=0.5)
        return self._keeper.poll() is None

    def close(self) -> None:
        """Let the keeper clean up on the device, and end the connection."""
        self._closing.set()
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            with contextlib.suppress(OSError):
                assert keeper.stdin
                keeper.stdin.close()
            try:
                keeper.wait(timeout=15)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
            assert keeper.stdout
            keeper.stdout.close()
        if self._errors is not None:
            self._errors.close()
        shutil.rmtree(self._local, ignore_errors=True)

    def _ssh(self, master: str, remote: str) -> list[str]:
        config = ["-F", str(self._config)] if self._config else []
        control = [f"ControlMaster={master}", f"ControlPath={self._local / 'c'}"]
        options = [word for option in (*_OPTIONS, *control) for word in ("-o", option)]
        return ["ssh", "-T", *config, *options, *self.address.words, remote]

    def _start(self) -> None:
        keeper = Path(__file__).with_name("keeper.py").read_text(encoding="utf-8")
        words = ["sh", "-c", _HELLO, "sh", keeper, _VERSION, *self._pythons]
        self._errors = (self._local / "errors").open("w+b")
        pipe = subprocess.PIPE
        try:
            self._keeper = subprocess.Popen(
                self._ssh("yes", shlex.join(words)),
                stdin=pipe,
                stdout=pipe,
                stderr=self._errors,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise UnavailableError(
                "there is no `ssh` on this machine", hint="apt-get install openssh-client, or your system's package"
            ) from None

    def _greet(self) -> None:
        """Read what the device says first: its interpreters, then the folder."""
        for line in self._lines():
            word, _, text = line.partition(" ")
            if word == "edgekd-python":
                about, _, path = text.partition("\t")
                self.interpreters.append(Interpreter(path, about.partition(" ")[0]))
            elif word == "edgekd-folder":
                self.folder = json.loads(text)
                return
            elif word == "edgekd-refused":
                raise StageError(
                    f"{self.address}: no temporary folder can be made on the device: {json.loads(text)}",
                    hint="free some space there, or mend its folder for temporary files (TMPDIR)",
                )
            elif word == "edgekd-nothing":
                raise UnavailableError(
                    f"{self.address} has no Python 3.8 or later (looked for {', '.join(self._pythons)})",
                    hint="there: apt-get install python3 python3-numpy, or name one: edgekd target add --python PATH",
                )
        raise explain(self.address, self._said(), self._config)

    def _lines(self) -> list[str]:
        """Lines of the keeper up to the one that ends its greeting, or the end of its output."""
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        stream, seen, end = self._keeper.stdout, b"", time.monotonic() + _HELLO_S
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while time.monotonic() < end:
                if not selector.select(timeout=0.5):
                    continue
                chunk = os.read(stream.fileno(), 65536)
                seen += chunk
                last = [
                    line for line in seen.split(b"\n")[:-1] if line.startswith((b"edgekd-f", b"edgekd-r", b"edgekd-n"))
                ]
                if last or not chunk:
                    return seen.decode("utf-8", "replace").splitlines()
        return []

    def _said(self) -> str:
        assert self._errors is not None
        assert self._keeper is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(timeout=5)
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace")

    def _beat(self) -> None:
        """A byte every few seconds: a device that hears nothing for a minute cleans up."""
        keeper = self._keeper
        while keeper is not None and keeper.stdin and not self._closing.wait(_HEARTBEAT_S):
            try:
                os.write(keeper.stdin.fileno(), b".")
            except (OSError, ValueError):
                return


def _short_folder() -> Path:
    made = tempfile.mkdtemp(prefix="edgekd-ssh-")
    if len(os.fsencode(made)) > _LONGEST_SOCKET:
        os.rmdir(made)
        made = tempfile.mkdtemp(prefix="edgekd-ssh-", dir="/tmp")
    return Path(made)
