"""Worker processes that decode images ahead of training. Importing this loads no numpy, torch or Pillow.

A worker reads tasks from its standard input and writes arrays to its standard output; it ends when its parent closes
them or is gone. Known pools were tried first. The workers of torch's DataLoader import torch, which costs each of them
180 MB and two seconds, and hand over in /dev/shm, of which a container may have too little. concurrent.futures receives
in a thread, and glibc keeps so much of that thread's memory that a process grew by 1 GB over 400 batches. These workers
take 50 MB, and the thread that wants a batch reads it where it stays.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from edgekd.errors import DataError, EdgekdError

if TYPE_CHECKING:
    from numpy.typing import NDArray

K = TypeVar("K")
Task = Callable[[], "NDArray[Any]"]


class Pool:
    """Processes that start when they are first needed, and end with this object or the program, however it ends.

    Args:
        workers: how many; with 0 everything is done in this process.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[_Worker] = []

    def in_order(self, tasks: Iterable[tuple[K, Task]]) -> Iterator[tuple[K, NDArray[Any]]]:
        """Results of tasks, each with its key, in their order; each worker is at most one task ahead.

        Tasks travel as pickles, keys stay here. Who stops before the last result ends the workers; otherwise they stay
        for the next call. A call inside of another has workers of its own.

        Raises:
            DataError: a task raised it, or a worker died.
        """
        if not self.workers:
            yield from ((key, task()) for key, task in tasks)
            return
        asked: deque[tuple[K, _Worker]] = deque()
        idle: list[_Worker] = []
        try:
            for key, task in tasks:
                if len(asked) < self.workers:
                    worker = self._idle.pop() if self._idle else _Worker()
                    asked.append((key, worker))
                    worker.ask(task)
                    continue
                first, worker = asked.popleft()
                asked.append((key, worker))
                result = worker.answer()
                worker.ask(task)
                yield first, result
            while asked:
                first, worker = asked[0]
                result = worker.answer()
                idle.append(asked.popleft()[1])
                if not asked:  # before the last result: nobody need ask for one more
                    self._keep(idle)
                yield first, result
        finally:
            for _, worker in asked:
                worker.end()
            if asked:
                for worker in idle:
                    worker.end()

    def _keep(self, workers: list[_Worker]) -> None:
        self._idle += workers
        for worker in self._idle[self.workers :]:
            worker.end()
        del self._idle[self.workers :]


class _Worker:
    """One process. It is asked only when it has answered, so that neither side waits for the other to read."""

    def __init__(self) -> None:
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._requests = cast(io.BufferedWriter, process.stdin)
        self._answers = cast(io.BufferedReader, process.stdout)
        self.end = weakref.finalize(self, _end, process)

    def ask(self, task: Task) -> None:
        """Send a task."""
        try:
            pickle.dump(task, self._requests)
            self._requests.flush()
        except BrokenPipeError:
            raise _died() from None

    def answer(self) -> NDArray[Any]:
        """Wait for the result of the last task."""
        import numpy as np

        try:
            found = pickle.load(self._answers)  # noqa: S301 - from a process of our own
            if isinstance(found, EdgekdError):
                raise found
            result: NDArray[Any] = np.empty(*found)
            if self._answers.readinto(result.reshape(-1).view(np.uint8).data) < result.nbytes:
                raise EOFError
        except (EOFError, pickle.UnpicklingError):
            raise _died() from None
        return result


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # a task that was not sent to its end
            stream.close()


def _died() -> DataError:
    return DataError(
        "a process that decodes images died",
        hint="if memory ran out, lower `data.workers` (0 decodes in the training process) or the batch",
    )


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """What a worker does: answer tasks until there are no more."""
    while True:
        try:
            task: Task = pickle.load(requests)  # noqa: S301 - from the parent
        except EOFError:
            return
        try:
            result = task()
        except EdgekdError as error:
            pickle.dump(error, answers)
        else:
            pickle.dump((result.shape, result.dtype.str), answers)
            answers.write(result.data.cast("B") if result.size else b"")
        answers.flush()


def main() -> None:
    """Serve standard input and output; what a library may print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:  # the parent is gone
        os._exit(0)


if __name__ == "__main__":
    main()
