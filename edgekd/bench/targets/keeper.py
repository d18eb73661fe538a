"""Runs on a device as long as we are connected: makes a fresh folder, and removes it with all that runs in it.

It is sent as text to the device's Python (3.8, standard library alone). Standard input brings a byte every few seconds;
its end, or silence, means that nobody is there any more.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time

SILENCE_S = 60.0


def main() -> None:
    """Name the folder on standard output, wait for the end of standard input, clean up."""
    for name in ("SIGHUP", "SIGPIPE"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        folder = tempfile.mkdtemp(prefix="edgekd-")
    except OSError as error:
        _say("refused", str(error))
        return
    try:
        _say("folder", folder)
        _wait()
    finally:
        _clean(folder)
    with contextlib.suppress(OSError):
        _say("gone", folder)


def _wait() -> None:
    while True:
        ready, _, _ = select.select([0], [], [], SILENCE_S)
        if not ready or not os.read(0, 4096):
            return


def _clean(folder: str) -> None:
    """End what still runs there, then remove the folder; a process that is just ending may still write in it."""
    for path in glob.glob(os.path.join(glob.escape(folder), "*.pid")):
        with contextlib.suppress(OSError, ValueError), open(path) as stream:
            _kill(int(stream.read()))
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def _kill(pid: int) -> None:
    # `timeout` leads a process group of its own; without it the agent is alone.
    try:
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        os.kill(pid, signal.SIGKILL)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(1)


def _say(word: str, text: str) -> None:
    sys.stdout.write("edgekd-{} {}\n".format(word, json.dumps(text)))  # noqa: UP032
    sys.stdout.flush()


if __name__ == "__main__":
    main()
