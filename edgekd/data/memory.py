"""How much memory a program may still take on this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgekd.files import processes_here


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """This process's part of what Linux calls available, but no more than its control groups leave.

    Elsewhere of the physical memory. Page cache that can be dropped counts as free. Processes that train together on a
    machine have equal parts.
    """
    return _free(proc, cgroups) // processes_here()


def _free(proc: Path, cgroups: Path) -> int:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(proc / "meminfo"), re.MULTILINE)
    if found is None:
        return physical_bytes()
    return max(0, min(int(found.group(1)) * 1024, *_left_by_groups(proc, cgroups)))


def physical_bytes() -> int:
    """The memory that is built in."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_by_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group with a limit leaves, from this process's own up to the root (versions 1 and 2)."""
    yield physical_bytes()
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = cgroups / controllers if controllers else cgroups
        limit, usage = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else _NAMES
        # Inside of a container the path may be the host's: the container's own group is then the root of what is seen.
        for folder in {root / path.lstrip("/"), *(root / path.lstrip("/")).parents, root}:
            if folder == root or root in folder.parents:
                with contextlib.suppress(ValueError):  # "max", or no such file
                    droppable = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.M)
                    used = int(_text(folder / usage)) - (int(droppable.group(1)) if droppable else 0)
                    yield int(_text(folder / limit)) - used


_NAMES = ("memory.max", "memory.current")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
