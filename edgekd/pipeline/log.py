"""What a run says while it works: lines on standard error, and every event in log.jsonl."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO


class Log:
    """Progress and messages; standard output is left to results."""

    def __init__(self, *, form: str = "text", quiet: bool = False, stream: TextIO | None = None) -> None:
        self.form, self.quiet = form, quiet
        self._stream = stream or sys.stderr
        self._path: Path | None = None

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

    def error(self, message: str, hint: str | None) -> None:
        """One line of what is wrong, one of how to mend it; shown also when quiet."""
        self._event("error", message, hint=hint)
        if self.form == "json":
            self._say("error", message, hint=hint)
            return
        print(f"error: {message}", file=self._stream)
        if hint:
            print(f"help: {hint}", file=self._stream)

    def bug(self, error: BaseException) -> str:
        """Keep the traceback of a bug of ours; returns the name of the file that holds it."""
        text = "".join(traceback.format_exception(error))
        self._event("bug", str(error), traceback=text)
        return str(self._path) if self._path else "the log"

    def _say(self, level: str, text: str, **more: Any) -> None:
        if self.form == "json":
            text = json.dumps({"level": level, "message": text, **more})
        with contextlib.suppress(BrokenPipeError):  # whoever read our progress went away: the run does not
            print(text, file=self._stream, flush=True)

    def _event(self, level: str, text: str, **more: Any) -> None:
        if self._path is None:
            return
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "level": level, "message": text, **more})
        try:
            with self._path.open("a") as stream:
                stream.write(line + "\n")
        except OSError:
            self._path = None  # a full disk must not keep the real error from being said
