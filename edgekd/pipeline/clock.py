"""Where the time of a run goes: importing, training, exporting, compiling, measuring, and the rest, edgekd's own."""

from __future__ import annotations

import builtins
import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

from edgekd.stages.kinds import KINDS

_WORK = {"export": "export", "compile": "compile", "evaluate": "measure", "bench": "measure"}
_MANY = 10_000  # objects
PARTS = ("import", "train", "export", "compile", "measure")


class Clock:
    """Seconds of a run by what they were spent on; what a stage imports while it works belongs to its work."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._cpu_began, self._cpu_of_parts = time.process_time(), 0.0

    def spent(self, whole: float) -> dict[str, float]:
        """`import_s`, `train_s`, .. and as `own_s` what else a run of so many seconds took, with its CPU time."""
        found = {f"{part}_s": round(seconds, 3) for part, seconds in self._seconds.items()}
        own_cpu = time.process_time() - self._cpu_began - self._cpu_of_parts
        own = max(0.0, whole - sum(self._seconds.values()))
        return {**found, "own_s": round(own, 3), "own_cpu_s": round(own_cpu, 3)}

    @contextlib.contextmanager
    def working(self, stage: str) -> Iterator[None]:
        """While a stage works."""
        with self._counting("train" if KINDS[stage].trains else _WORK[stage]):
            yield

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """While import statements of this thread are timed: what else is done here is edgekd's own."""
        plain, thread, inside = builtins.__import__, threading.get_ident(), False

        def timed(*args: Any, **named: Any) -> Any:  # without `_counting`: torch imports thousands of times
            nonlocal inside
            if inside or threading.get_ident() != thread:
                return plain(*args, **named)
            inside, began, cpu_began = True, time.perf_counter(), time.process_time()
            collects = gc.isenabled()
            gc.disable()
            try:
                return plain(*args, **named)
            finally:
                if collects:
                    _collect_again()
                inside = False
                self._add("import", began, cpu_began)

        builtins.__import__ = timed
        try:
            yield
        finally:
            if builtins.__import__ is timed:  # else a module put its own there, which calls this one
                builtins.__import__ = plain

    @contextlib.contextmanager
    def _counting(self, part: str) -> Iterator[None]:
        began, cpu_began = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._add(part, began, cpu_began)

    def _add(self, part: str, began: float, cpu_began: float) -> None:
        self._seconds[part] += time.perf_counter() - began
        self._cpu_of_parts += time.process_time() - cpu_began


def _collect_again() -> None:
    """The garbage collector works on after an import, in which it would look at every new object and find nothing.

    What a large module brought stays: it counts as old, as all that is there, and is not looked through once more.
    """
    if gc.get_count()[0] > _MANY:
        gc.freeze()
        gc.unfreeze()
    gc.enable()
