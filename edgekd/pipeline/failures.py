"""What the operating system refuses, in words: a full disk, a folder that cannot be written."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Mapping
from pathlib import Path

from edgekd.errors import ConfigError, StageError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def explain_os_error(error: OSError, *, stages: bool = True) -> StageError:
    """An OSError as an error of ours that names the file and the way out; `stages`: whether some may be finished."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in _FULL:
        return StageError(
            f"{where}no space left on the disk",
            hint="free some space (`edgekd store gc --keep 20`) and run the same command again",
        )
    kept = ": finished stages are kept" if stages else ""
    return StageError(f"{where}{error.strerror or error}", hint=f"mend that and run the same command again{kept}")


def check_folders(folders: Mapping[str, Path]) -> None:
    """Make folders, named by the options that gave them, and see that files can be made in them.

    Raises:
        ConfigError: one of them is a file, or cannot be written.
        StageError: the disk is full.
    """
    for option, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if error.errno in _FULL:
                raise explain_os_error(error) from None
            reason = "is a file, not a folder" if folder.is_file() else f"cannot be written: {error.strerror}"
            raise ConfigError(f"{option} {folder}: {reason}", hint=f"choose another folder with {option}") from None
