"""Several processes for one run: torchrun starts them, rank 0 runs the pipeline, the others join it in training.

Rank 0 decides, writes and speaks as if it were alone. Before a stage that trains it tells the others which stage, under
which key and on which artefacts; they run the same function on the same store and throw away what it writes.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgekd.errors import ConfigError, EdgekdError, StageError, TrainingError, TryAgainError, UnavailableError
from edgekd.pipeline.plan import Planner
from edgekd.pipeline.schema import Pipeline, located
from edgekd.stages.context import Context
from edgekd.stages.kinds import KINDS
from edgekd.store import Artifact, Draft, Store

if TYPE_CHECKING:
    from edgekd.pipeline.runner import RunOptions

STATUS = "EDGEKD_STATUS_FILE"


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def launch(words: Sequence[str], processes: int, restarts: int) -> int:
    """Run `edgekd` with these words in several processes of this machine; returns rank 0's exit code.

    A process that dies takes the others with it; torchrun starts all again, at most `restarts` times, and they go on
    from the last checkpoint.

    Raises:
        StageError: a process died once too often.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        status = Path(folder) / "status"
        command = [sys.executable, "-m", "edgekd.pipeline.torchrun", "--standalone"]
        command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "-m", "edgekd", *words]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, STATUS: str(status)}
        with subprocess.Popen(command, env=environment) as child:
            code, stopped = _wait(child)
        if stopped:
            return 128 + stopped
        if code == 0 and status.is_file():
            return int(status.read_text())
        raise StageError(
            f"one of the {processes} processes died, and no restart is left",
            hint="the last checkpoint is kept: run it again, or with --max-restarts 3",
        )


def _wait(child: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Wait for torchrun and pass on what should stop it: its exit code, and the signal that came, or 0."""
    stopped = 0

    def stop(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = number
        child.send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return child.wait(), stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_with(code: int) -> NoReturn:
    """End a process that torchrun started; under `launch` the parent gets the exit code of rank 0 in a file.

    What torchrun sees is 0 then, unless a restart may mend it.
    """
    path = os.environ.get(STATUS)
    if path is not None and code != TryAgainError.exit_code:
        if os.environ.get("RANK", "0") == "0":
            Path(path).write_text(str(code))
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads of the connection to the others outlive what they use, and end the process with an abort.
    os._exit(code)


class Team:
    """The other processes, as rank 0 sees them; alone, there are none."""

    count = 1

    def join(self) -> None:
        """Meet the others."""
        if launched():
            from edgekd.train.distributed import join

            self.count = join().count

    def start(self, stage: str, key: str, inputs: Mapping[str, Artifact]) -> None:
        """Have the others run a stage together with this process."""
        self._tell({"stage": stage, "key": key, "inputs": {name: a.key for name, a in inputs.items()}})

    def end(self) -> None:
        """Let the others go."""
        self._tell(None)

    def _tell(self, message: dict[str, Any] | None) -> None:
        if self.count > 1:
            from edgekd.train.distributed import current

            current().shared(message)


def lost(error: BaseException) -> TryAgainError | None:
    """What a broken connection to another process means; None for any other error."""
    if not launched() or not isinstance(error, RuntimeError):
        return None
    words = ("connection", "timed out", "peer", "gloo", "nccl", "store")
    if type(error).__module__.startswith("torch") or any(word in str(error).lower() for word in words):
        return TryAgainError(
            "another process of this run is gone",
            hint="the last checkpoint is kept: the same command goes on from there",
        )
    return None


def follows() -> bool:
    """Whether this is one of several processes, and not the first."""
    return launched() and os.environ.get("RANK", "0") != "0"


def check_processes(pipeline: Pipeline, count: int) -> None:
    """Raise ConfigError when a step has fewer samples than there are processes."""
    train = pipeline.settings.train
    if train.batch < count * train.accumulate:
        raise located(
            pipeline,
            ("train", "batch"),
            ConfigError(
                f"{train.batch} samples a step cannot be shared by {count} processes",
                hint=f"set train.batch to {count * train.accumulate} or more: it counts over all processes",
            ),
        )


def follow(pipeline: Pipeline, options: RunOptions) -> int:
    """What every process but rank 0 does: run the stages that it is told, until there are no more."""
    from edgekd.train.distributed import current, join

    rank = int(os.environ["RANK"])
    store = Store(options.store)
    planner = Planner.open(pipeline, store)
    try:
        join()
        while (message := current().shared(None)) is not None:
            _take_part(message, planner, store, rank)
    except TrainingError:
        return 0  # rank 0 says it
    except EdgekdError as error:
        raise type(error)(f"process {rank}: {error.message}", hint=error.hint) from error
    except RuntimeError as error:
        if lost(error) is None:
            raise
    return 0


def _take_part(message: dict[str, Any], planner: Planner, store: Store, rank: int) -> None:
    """Run the stage of a message as rank 0 does; what it writes is thrown away."""
    from edgekd.train.precision import use_threads

    common = planner.common()
    use_threads(common.train)
    stage = message["stage"]
    settings = next(entry.settings for entry in planner.pipeline.stages if entry.name == stage)
    inputs = {name: _artifact(store, key, rank) for name, key in message["inputs"].items()}
    module, _, name = KINDS[stage].function.partition(":")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        draft, work = Draft(Path(folder)), store.work(message["key"])
        getattr(importlib.import_module(module), name)(
            Context(stage, settings, common, inputs, draft, work, store, tell=_say_nothing, epoch=_say_nothing)
        )


def _say_nothing(*words: object) -> None:
    """Progress is for rank 0 to tell."""


def _artifact(store: Store, key: str, rank: int) -> Artifact:
    found = store.get(key, verify=False)
    if found is None:
        raise UnavailableError(
            f"process {rank} does not see artefact {key[:12]} in {store.root}",
            hint="give --store a folder that all machines share",
        )
    return found
