"""How a process that trains uses its processor: threads, and memory that it keeps."""

from __future__ import annotations

import ctypes
import os

import torch

from edgekd.files import processes_here
from edgekd.train.settings import TrainSettings

_SMALL_MACHINE = 4
_MOST_THREADS = 8
# glibc's parameters (malloc.h) and what they are set to: bytes, in an int.
_KEPT = {-1: 2**31 - 1, -2: 2**26, -3: 2**30}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD


def set_up_processor(settings: TrainSettings) -> None:
    """Give this process its threads by the rule in the settings (0 leaves it to torch), and let it keep its memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = settings.threads
    if threads == "auto":
        threads = threads_for(cores, processes_here())
    if threads:
        torch.set_num_threads(min(threads, cores))
    keep_memory()


def threads_for(cores: int, processes: int) -> int:
    """The rule for `threads: auto`."""
    return 1 if cores <= _SMALL_MACHINE else max(min(cores // 4, _MOST_THREADS) // processes, 1)


def keep_memory() -> None:
    """Let malloc keep what is freed: each step of training asks for the same blocks again.

    By itself glibc returns them to the system and gets them back as zeroed pages, thousands of faults in each step and
    a tenth of its time (benchmarks/kept_memory.py). Other C libraries have no such call, and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter, value in _KEPT.items():
            mallopt(parameter, value)
