"""Worker processes that decode images ahead of training. Importing this loads no numpy, torch or Pillow.

They are Python's own process pool, started afresh: no fork of a process that has threads or a GPU. torch's DataLoader
would do, too, but its workers import torch, which costs each of them 200 MB and two seconds, and hand batches over in
/dev/shm, of which a container may have too little. These import numpy and Pillow, and answer through a pipe.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from edgekd.errors import DataError

_AHEAD = 2  # tasks in flight for each worker: one that it works on, one that it takes up next

K = TypeVar("K")
R = TypeVar("R")


class Pool:
    """Processes that start when they are first needed, and end with this object or the program, however it ends.

    Args:
        workers: how many; with 0 everything is done in this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def in_order(self, tasks: Iterable[tuple[K, Callable[[], R]]]) -> Iterator[tuple[K, R]]:
        """Results of tasks, each with its key, in their order; at most two tasks per worker are begun ahead.

        Tasks and results travel as pickles, keys stay here. Whoever stops before the last result ends the workers.

        Raises:
            DataError: a task raised it, or a worker died.
        """
        if not self.workers:
            yield from ((key, task()) for key, task in tasks)
            return
        waiting: deque[tuple[K, Future[R]]] = deque()
        done = False
        try:
            for key, task in tasks:
                waiting.append((key, self._submit(task)))
                if len(waiting) > _AHEAD * self.workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                result = future.result()
                done = not waiting  # before the last result: nobody need ask for one more
                yield first, result
            done = True
        except BrokenProcessPool:
            raise DataError(
                "a process that decodes images died",
                hint="it may have run out of memory: lower `data.workers` (0 decodes in the training process) or the "
                'batch; a script of your own needs `if __name__ == "__main__":`',
            ) from None
        finally:
            if not done:
                self.close()

    def close(self) -> None:
        """Let the workers end after the task that each is at; others start when they are needed."""
        executor, self._executor = self._executor, None
        if executor is not None:
            # Not waiting: a generator that is garbage may be closed in any thread, the executor's own among them.
            executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self, task: Callable[[], R]) -> Future[R]:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, initializer=_start)
        return self._executor.submit(task)


def _start() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
