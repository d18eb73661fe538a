"""Every error that edgekd raises on purpose: one root, a message, a hint that mends it, an exit code.

EdgekdError
├── ConfigError          2   wrong command line or pipeline file, or what can be known before the first stage
├── UnavailableError     3   a dependency, an engine or a device is missing or refused
├── StageError           4   a stage failed
│   ├── DataError            data that cannot be read or makes no sense
│   ├── TrainingError        training went wrong (a loss that is not finite, ..)
│   ├── ExportError          a network that cannot be captured, quantized or written as ONNX
│   ├── ParityError          two forms of one network disagree
│   ├── CompileError         an engine refused a graph
│   └── BenchError           a measurement failed
├── GateError            5   a budget was broken, or a regression was found
└── TryAgainError       75   a lock was not freed in time, a device or the network dropped off
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class EdgekdError(Exception):
    """Root of all: `message` says in one line what is wrong, `hint` in one line how to mend it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(EdgekdError):
    """Wrong command line or pipeline file. `problems` holds every (message, hint) that was found."""

    exit_code = 2

    def __init__(
        self, message: str, *, hint: str | None = None, problems: tuple[tuple[str, str | None], ...] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = problems or ((message, hint),)


class UnavailableError(EdgekdError):
    """A dependency, an engine or a device is missing or refused."""

    exit_code = 3


class StageError(EdgekdError):
    """A stage failed."""

    exit_code = 4


class DataError(StageError):
    """Data that cannot be read, or that makes no sense."""


class TrainingError(StageError):
    """Training went wrong."""


class ExportError(StageError):
    """A network that cannot be captured, quantized or written as ONNX."""


class ParityError(StageError):
    """Two forms of one network disagree on real data."""


class CompileError(StageError):
    """An engine refused a graph."""


class BenchError(StageError):
    """A measurement failed."""


class GateError(EdgekdError):
    """A budget was broken, or a comparison found a regression."""

    exit_code = 5


class TryAgainError(EdgekdError):
    """Something that may well work later: a lock, a device, the network."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def install_hint(extra: str, *packages: str) -> str:
    """The command that brings an extra of edgekd to where this edgekd came from: a clone, or a package index.

    `packages`: what the extra brings; where edgekd is no installed package (the agent on a device), they alone.
    """
    import json
    import shlex
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    try:
        told = metadata.distribution("edgekd").read_text("direct_url.json")
        origin = json.loads(told) if told else {}
    except metadata.PackageNotFoundError:
        return f"pip install {' '.join(packages)}"
    except ValueError:
        origin = {}
    if "dir_info" not in origin:
        return f"pip install 'edgekd[{extra}]'"
    editable = "-e " if origin["dir_info"].get("editable") else ""
    folder = unquote(urlsplit(origin["url"]).path)
    return f"pip install {editable}{shlex.quote(f'{folder}[{extra}]')}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notes of libraries about their own insides from the user: nothing in them is theirs to mend."""
    import io
    import logging
    import warnings
    from contextlib import redirect_stderr, redirect_stdout

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
