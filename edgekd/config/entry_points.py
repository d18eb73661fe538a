"""What installed packages offer by entry point: names, and the import strings behind them. Nothing is imported."""

from __future__ import annotations

import functools
import importlib.metadata
import sys

SCHEMES = "edgekd.schemes"
KNOWLEDGE = "edgekd.knowledge"


def offered(group: str) -> dict[str, str]:
    """Import strings "package.module:name" by the names that packages on the import path give them in a group."""
    return _offered(group, tuple(sys.path))


@functools.cache
def _offered(group: str, path: tuple[str, ...]) -> dict[str, str]:
    return {entry.name: entry.value.replace(" ", "") for entry in importlib.metadata.entry_points(group=group)}


def import_string(name: str, group: str) -> str:
    """What a name of the user's own stands for: an import string for itself, a short name for what a package offers.

    A name that no package offers stands for itself too.
    """
    return name if ":" in name else offered(group).get(name, name)
