"""Which file belongs to which split, by the beginning of its name; and paths that stay inside of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgekd.data.sources import SPLITS, Split
from edgekd.errors import ConfigError

_WORDS: dict[Split, str] = {"train": "train", "validation": "validation|(?:valid|val)(?![A-Za-z])", "test": "test"}
SPLIT_WORDS: Mapping[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
"""What a split may be called by a folder or in a column."""


def split_of(name: str) -> Split | None:
    """The split that a file's name begins with: train.., test.., validation.., valid, val."""
    return next((split for split in SPLITS if re.match(_WORDS[split], name)), None)


def files_of(root: Path, suffix: str, *, loose: bool = False) -> dict[Split, Sequence[Path]]:
    """The files of a folder with a suffix, sorted, by split; or one file, which is train.

    Args:
        loose: whether files of other names are train where no name begins with a split.
    """
    if root.suffix.lower() == suffix and not root.is_dir():
        return {"train": [root]}
    paths = sorted(path for path in root.glob(f"*{suffix}") if not path.name.startswith("."))
    found = {split: [path for path in paths if split_of(path.name) == split] for split in SPLITS}
    if loose and paths and not any(found.values()):
        return {"train": paths}
    return {split: files for split, files in found.items() if files}


def split_folders(root: Path, address: str) -> dict[Split, Path]:
    """Folders of a folder that are called like splits.

    Raises:
        ConfigError: two are the same split.
    """
    found: dict[Split, Path] = {}
    for word, split in SPLIT_WORDS.items():
        if (root / word).is_dir():
            if split in found:
                raise ConfigError(
                    f"{address}: {root} holds both {found[split].name} and {word}", hint="both are validation: keep one"
                )
            found[split] = root / word
    return {split: found[split] for split in SPLITS if split in found}


def leads_out(path: str, root: str) -> bool:
    """Whether a path, links followed, lies outside of `root`, which is such a path itself."""
    return os.path.commonpath([os.path.realpath(path), root]) != root


def first_outside(paths: Iterable[str], root: Path) -> str | None:
    """The first of some paths that lies outside of a folder, links followed."""
    real = os.path.realpath(root)
    return next((path for path in paths if leads_out(path, real)), None)
