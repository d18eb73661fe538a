"""What a run says while it works: lines on standard error, and every event in log.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

_BAR = 10
_CLEAR = "\r\x1b[2K"
_PLACED = re.compile(r"(.+?):(\d+):(\d+): (.*)", re.DOTALL)


def annotate(message: str, stream: TextIO | None = None) -> None:
    """In a GitHub job, show a message that begins with file:line:column at that line of the pull request.

    The command goes to standard error, which the runner reads, too: standard output stays one document with `--json`.
    """
    placed = _PLACED.fullmatch(message) if os.environ.get("GITHUB_ACTIONS") == "true" else None
    if placed is None:
        return
    file, line, column, text = placed.groups()
    where = f"file={_escaped(_in_repository(file), ':,')},line={line},col={column}"
    with contextlib.suppress(BrokenPipeError):
        print(f"::error {where}::{_escaped(text)}", file=stream or sys.stderr, flush=True)


def _in_repository(file: str) -> str:
    """The path from the root of the checkout, as the annotation wants it, wherever the job has gone."""
    root = os.environ.get("GITHUB_WORKSPACE")
    path = Path(file).resolve()
    return (
        path.relative_to(Path(root).resolve()).as_posix()
        if root and path.is_relative_to(Path(root).resolve())
        else file
    )


def _escaped(text: str, more: str = "") -> str:
    for sign in f"%\r\n{more}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


class Log:
    """Progress and messages; standard output is left to results."""

    def __init__(self, *, form: str = "text", quiet: bool = False, stream: TextIO | None = None) -> None:
        self.form, self.quiet = form, quiet
        self._stream = stream or sys.stderr
        self._path: Path | None = None
        # A bar is for somebody who watches: in CI, in a file and in JSON there are lines.
        watched = self._stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")
        self.bars = watched and form == "text" and not quiet
        self._bar_drawn = False

    def open(self, path: Path) -> None:
        """Begin a run's log file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self._path = path

    def info(self, text: str) -> None:
        """A line of progress."""
        self._event("info", text)
        if not self.quiet:
            self._say("info", text)

    def warning(self, text: str) -> None:
        """What a run goes on in spite of, and a user should look at."""
        self._event("warning", text)
        if not self.quiet:
            self._say("warning", text if self.form == "json" else f"warning: {text}")

    def epoch(self, text: str, short: str, share: float) -> None:
        """A line about an epoch; on a terminal its short form stands beside the bar."""
        if not self.bars:
            self.info(text)
            return
        self._event("info", text)
        self.bar(short, share)

    def bar(self, text: str, share: float) -> None:
        """Draw a bar of what is done (0 .. 1) over the last one."""
        columns = shutil.get_terminal_size().columns - 1
        filled = int(_BAR * min(max(share, 0.0), 1.0))
        line = f"[{'#' * filled}{'.' * (_BAR - filled)}] {share:4.0%}  {text}"
        self._write(f"{_CLEAR}{line[:columns]}", end="")
        self._bar_drawn = True

    def error(self, message: str, hint: str | None) -> None:
        """One line of what is wrong, one of how to mend it; shown also when quiet."""
        self._event("error", message, hint=hint)
        if self.form == "json":
            self._say("error", message, hint=hint)
            return
        self._end_bar()
        print(f"error: {message}", file=self._stream)
        if hint:
            print(f"help: {hint}", file=self._stream)
        annotate(message, self._stream)

    def bug(self, error: BaseException) -> str:
        """Keep the traceback of a bug of ours; returns the name of the file that holds it."""
        text = "".join(traceback.format_exception(error))
        self._event("bug", str(error), traceback=text)
        return str(self._path) if self._path else "the log"

    def _say(self, level: str, text: str, **more: Any) -> None:
        if self.form == "json":
            text = json.dumps({"level": level, "message": text, **more})
        self._end_bar()
        self._write(text)

    def _end_bar(self) -> None:
        """Leave the last bar standing: what comes next has a line of its own."""
        if self._bar_drawn:
            self._bar_drawn = False
            self._write("")

    def _write(self, text: str, end: str = "\n") -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever read our progress went away: the run does not
            print(text, end=end, file=self._stream, flush=True)

    def _event(self, level: str, text: str, **more: Any) -> None:
        if self._path is None:
            return
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "level": level, "message": text, **more})
        try:
            with self._path.open("a") as stream:
                stream.write(line + "\n")
        except OSError:
            self._path = None  # a full disk must not keep the real error from being said
