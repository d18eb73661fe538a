"""Worker processes: in order, a little ahead, and nothing of them is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import PARQUET, parquet_set, streamed
from worker_processes import command, worker_pids

from edgekd.data.stream import StreamedTable
from edgekd.data.table import row_groups
from edgekd.data.workers import Pool
from edgekd.errors import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    yield
    gc.collect()
    assert worker_pids() == []


def test_workers_import_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    rows = streamed(tmp_path, 1, parquet=PARQUET).load("train")
    assert isinstance(rows, StreamedTable)
    list(rows.batches(row_groups(len(rows), 8)))
    loaded = partial(np.array, Late("sorted({'torch', 'pyarrow', 'PIL'} & set(__import__('sys').modules))"))
    ((_, modules),) = rows._pool.in_order([("modules", loaded)])
    assert modules.tolist() == ["PIL"]


class Late:
    """An expression that is evaluated where it is unpickled."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.text,)


def test_workers_stay_for_the_next_epoch(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    data = streamed(tmp_path, 2, parquet=PARQUET)
    seen = []
    for split in ("train", "validation", "train"):
        rows = data.load(split)
        batches = rows.batches(row_groups(len(rows), 2))
        for _ in range(-(-len(rows) // 2)):  # as the trainer does it: nobody asks for the end
            next(batches)
        del batches
        seen.append(sorted(worker_pids()))
    assert len(seen[0]) == 2
    assert seen[0] == seen[1] == seen[2]


def squares(count: int, begun: list[int]) -> Iterator[tuple[int, Any]]:
    for number in range(count):
        begun.append(number)
        yield number, partial(np.square, np.array([number]))


def test_few_batches_are_begun_ahead() -> None:
    begun: list[int] = []
    for number, result in Pool(3).in_order(squares(20, begun)):
        assert result.tolist() == [number**2]
        assert len(begun) <= number + 4
    assert list(Pool(3).in_order([])) == []


def test_a_pool_can_be_used_within_its_own_use() -> None:
    pool = Pool(1)
    products = [
        (outer, inner, int(x[0] * y[0]))
        for outer, x in pool.in_order(squares(3, []))
        for inner, y in pool.in_order(squares(2, []))
    ]
    assert products == [(i, j, i * i * j * j) for i in range(3) for j in range(2)]
    assert len(worker_pids()) == 1


def test_large_tasks_and_results_do_not_block_each_other() -> None:
    array = np.arange(10**6)
    tasks = [(number, partial(np.add, array, number)) for number in range(4)]
    for number, result in Pool(2).in_order(tasks):
        assert np.array_equal(result, array + number)


def test_a_failing_consumer_leaves_no_process(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    data = streamed(tmp_path, 2, parquet=PARQUET)

    def consume() -> None:
        for _ in data.load("train").batches(row_groups(36, 4)):
            assert len(worker_pids()) == 2
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        consume()
    del caught
    assert worker_pids() == []
    batches = data.load("train").batches(row_groups(36, 4))
    next(batches)
    assert len(worker_pids()) == 2
    batches.close()
    assert worker_pids() == []
    assert len(list(data.load("train").batches(row_groups(36, 4)))) == 9


@pytest.mark.parametrize("where", [0, 1, 4])
def test_a_worker_that_dies_is_an_error_and_the_next_one_works(where: int) -> None:
    pool = Pool(2)
    tasks = list(squares(5, []))
    tasks[where] = (where, partial(os._exit, 3))
    with pytest.raises(DataError, match="a process that decodes images died") as caught:
        list(pool.in_order(tasks))
    assert "data.workers" in str(caught.value.hint)
    assert worker_pids() == []
    assert [number for number, _ in pool.in_order(squares(3, []))] == [0, 1, 2]


def test_what_a_library_prints_does_not_disturb(capfd: pytest.CaptureFixture[str]) -> None:
    noisy = partial(np.array, Late("[__import__('os').write(1, b'noise')]"))
    ((_, result),) = Pool(1).in_order([(0, noisy)])
    assert result.tolist() == [5]
    assert capfd.readouterr() == ("", "noise")


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(end: signal.Signals, busy: bool) -> None:
    code = (
        "import numpy, os, signal, sys; from functools import partial; from edgekd.data.workers import Pool\n"
        # A shell lets what it runs in the background ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "tasks = [(n, partial(numpy.zeros, 10**6)) for n in range(3)]\n"
        f"pool = Pool(1); batches = pool.in_order(tasks); [next(batches) for _ in range({1 if busy else 3})]\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    with parent.stdin, parent.stdout:
        assert parent.stdout.readline() == b"ready\n"
        (worker,) = worker_pids(parent.pid)
        parent.send_signal(end)
        parent.wait(10)
        deadline = time.monotonic() + 10
        while command(worker):
            assert time.monotonic() < deadline, "the worker is still there"
            time.sleep(0.05)
