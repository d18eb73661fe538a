"""Finds the worker processes of a process."""

from __future__ import annotations

from pathlib import Path


def worker_pids(parent: int | str = "self") -> list[int]:
    """Worker processes of a process."""
    texts = [path.read_text() for path in Path(f"/proc/{parent}/task").glob("*/children")]
    return [pid for pid in map(int, " ".join(texts).split()) if "edgekd.data.workers" in command(pid)]


def command(pid: int) -> str:
    """What a process runs; nothing for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
