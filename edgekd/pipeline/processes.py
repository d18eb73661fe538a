"""Several processes for one run: torchrun starts them, rank 0 runs the pipeline, the others join it in training.

Rank 0 decides, writes and speaks as if it were alone. Before a stage that trains it tells the others which stage, under
which key and on which artefacts; they run the same function on the same store and throw away what it writes.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgekd.errors import ConfigError, EdgekdError, StageError, TrainingError, TryAgainError, UnavailableError
from edgekd.files import die_with_parent, launched, leave_at_once
from edgekd.pipeline.plan import Planner
from edgekd.pipeline.schema import Pipeline, located
from edgekd.stages.context import Context
from edgekd.stages.kinds import KINDS
from edgekd.store import Artifact, Draft, Store
from edgekd.train.settings import TrainOverrides

if TYPE_CHECKING:
    from edgekd.pipeline.start import RunOptions

STATUS = "EDGEKD_STATUS_FILE"
_LAST_WORDS_S = 60.0
_BROKEN = re.compile("connection (closed|reset|refused)|broken pipe|timed out|connectFullMesh", re.IGNORECASE)


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
        command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", f"--log-dir={folder}"]
        command += ["-m", "edgekd", *words]
        environment = {"OMP_NUM_THREADS": "1", "LOGLEVEL": "CRITICAL", **os.environ, STATUS: str(status)}
        with subprocess.Popen(command, env=environment) as child:
            code, stopped = _wait(child)
        if stopped:
            return 128 + stopped
        said = int(status.read_text()) if status.is_file() else None
        if said is not None and (code == 0 or said != TryAgainError.exit_code):
            return said
        raise StageError(
            f"one of the {processes} processes died, and no restart is left"
            if code >= 0
            else "torchrun, which watches over the processes, was killed",
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


def done() -> bool:
    """Whether an earlier attempt of this process ended with a code that no restart changes."""
    path = Path(os.environ.get(STATUS, "/nowhere"))
    return path.is_file() and path.read_text() != str(TryAgainError.exit_code)


def leave_with(code: int) -> NoReturn:
    """End a process that torchrun started; under `launch` the parent gets the exit code of rank 0 in a file.

    A code other than 0 has torchrun stop the others, wherever they wait. If it then starts all again, they see that
    the code is final (`done`).
    """
    path = os.environ.get(STATUS)
    if path is not None and os.environ.get("RANK", "0") == "0" and not done():
        # torchrun terminates this process when another one died; that the user did, the parent knows by itself.
        final = TryAgainError.exit_code if code == 128 + signal.SIGTERM else code
        Path(path).write_text(str(final))
    # Not sys.exit: threads of the connection to the others outlive what they use, and end the process with an abort.
    leave_at_once(code)


class Team:
    """The other processes, as rank 0 sees them; alone, there are none."""

    def __init__(self) -> None:
        self.count = 1
        if launched():
            from edgekd.train.distributed import current

            self.count = current().count

    def start(self, stage: str, key: str, inputs: Mapping[str, Artifact], made_by: Mapping[str, Any]) -> None:
        """Have the others run a stage together with this process."""
        keys = {name: artifact.key for name, artifact in inputs.items()}
        self._tell({"stage": stage, "key": key, "inputs": keys, "made_by": dict(made_by)})

    def end(self) -> None:
        """Let the others go."""
        self._tell(None)

    def _tell(self, message: dict[str, Any] | None) -> None:
        if self.count > 1:
            from edgekd.train.distributed import current

            current().shared(message)


def lost(error: BaseException) -> TryAgainError | None:
    """What a broken connection to another process means; None for any other error."""
    if not launched() or "torch" not in sys.modules:
        return None
    from torch.distributed import DistError

    # gloo's errors have no type of their own.
    broken = type(error) is RuntimeError and _BROKEN.search(str(error)) is not None
    if not broken and not isinstance(error, DistError):
        return None
    return TryAgainError(
        "another process of this run is gone", hint="the last checkpoint is kept: the same command goes on from there"
    )


def follows() -> bool:
    """Whether this is one of several processes, and not the first."""
    return launched() and os.environ.get("RANK", "0") != "0"


def check_processes(pipeline: Pipeline, count: int) -> None:
    """Raise ConfigError when a step has fewer samples than there are processes."""
    train = pipeline.settings.train
    own = [entry.settings.over(train) for entry in pipeline.stages if isinstance(entry.settings, TrainOverrides)]
    batch = min(settings.batch for settings in (*own, train))
    if batch < count * train.accumulate:
        raise located(
            pipeline,
            ("train", "batch"),
            ConfigError(
                f"{batch} samples a step cannot be shared by {count} processes"
                + (f" with {train.accumulate} accumulated parts each" if train.accumulate > 1 else ""),
                hint=f"set batch to {count * train.accumulate} or more: it counts over all processes",
            ),
        )


def meet() -> None:
    """Join the others before anything can fail, so that nobody waits for a process that is gone.

    Raises:
        TryAgainError: they do not come.
        UnavailableError: there are fewer GPUs than processes on this machine.
    """
    from edgekd.train.distributed import join

    if STATUS in os.environ:
        die_with_parent()
    try:
        join()
    except RuntimeError as error:
        raise (lost(error) or error) from None


def follow(pipeline: Pipeline, options: RunOptions) -> int:
    """What every process but rank 0 does: run the stages that it is told, until there are no more."""
    from edgekd.train.distributed import current

    rank = current().rank
    try:
        store = options.open_store()
        planner = Planner.open(pipeline, store)
        while (message := current().shared(None)) is not None:
            _take_part(message, planner, store, rank)
    except (ConfigError, TrainingError) as error:
        _wait_for_first()  # it met rank 0 as well, which says it
        return error.exit_code
    except EdgekdError as error:
        raise type(error)(f"process {rank}: {error.message}", hint=error.hint) from error
    except RuntimeError as error:
        gone = lost(error)
        if gone is None:
            raise
        return gone.exit_code
    return 0


def _wait_for_first() -> None:
    """Stay until rank 0 has said what went wrong: torchrun stops it, mid-sentence, when another process ends first."""
    until = time.monotonic() + _LAST_WORDS_S
    while time.monotonic() < until and not done():
        time.sleep(0.05)


def _take_part(message: dict[str, Any], planner: Planner, store: Store, rank: int) -> None:
    """Run the stage of a message as rank 0 does; what it writes is thrown away."""
    from edgekd.train.processor import set_up_processor

    common = planner.common()
    set_up_processor(common.train)
    stage = message["stage"]
    settings = next(entry.settings for entry in planner.pipeline.stages if entry.name == stage)
    inputs = {name: _artifact(store, key, rank) for name, key in message["inputs"].items()}
    module, _, name = KINDS[stage].function.partition(":")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        draft, work = Draft(Path(folder)), store.work(message["key"])
        quiet = {"tell": _say_nothing, "epoch": _say_nothing, "warn": _say_nothing}
        context = Context(stage, settings, common, inputs, draft, work, store, message["made_by"], **quiet)
        getattr(importlib.import_module(module), name)(context)


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
