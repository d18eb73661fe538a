"""Load the build that a command was given: a damaged file is one line, whichever engine says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import CompileError, EdgekdError

if TYPE_CHECKING:
    from edgekd.runtimes.protocol import Session


def load_build(folder: Path, card: dict[str, Any]) -> Session:
    """A session of the build in a folder, as its model.json says.

    Raises:
        ConfigError: it is an ONNX file that is damaged, or points out of its folder.
        CompileError: its engine does not take it.
        UnavailableError: its engine or its device is missing.
    """
    from edgekd.models.onnx_safety import check_onnx
    from edgekd.runtimes.protocol import engine_message
    from edgekd.runtimes.registry import runtime

    path = folder / card["file"]
    if path.suffix == ".onnx":
        check_onnx(path)
    try:
        return runtime(card["runtime"]).load(path, device=card["device"], threads=1)
    except EdgekdError:
        raise
    except Exception as error:  # engines' errors share no base class but Exception
        raise CompileError(
            f"{path}: {card['runtime']} cannot load this build: {engine_message(error)}",
            hint="if it worked before, it is damaged: copy it again, or build it again",
        ) from error
