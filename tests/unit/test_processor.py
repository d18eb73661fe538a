"""What a process that trains does with its threads and its memory."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

import pytest

from edgekd.train.processor import threads_for

# Page faults of rounds that each ask for four blocks of 8 MB and free them, before and after the process is set up.
FAULTS = """
import json, resource, torch
from edgekd.train.processor import set_up_processor
from edgekd.train.settings import TrainSettings

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**21) for _ in range(4)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

own = [faults() for _ in range(4)]
set_up_processor(TrainSettings())
print(json.dumps([own, [faults() for _ in range(12)]]))
"""


def test_threads_by_the_written_rule() -> None:
    assert [threads_for(cores, 1) for cores in (1, 2, 4, 8, 16, 64)] == [1, 1, 1, 2, 4, 8]
    assert threads_for(64, 4) == 2
    assert threads_for(16, 16) == 1


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_a_process_that_trains_keeps_the_memory_of_its_steps() -> None:
    # With its threshold given, glibc maps each large block anew; without, it depends on what was freed before.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    ended = subprocess.run([sys.executable, "-c", FAULTS], env=env, check=True, capture_output=True, text=True)
    own, kept = json.loads(ended.stdout)
    assert min(own) > 1000
    assert max(kept[-6:]) < 100
