"""How a run starts: its options, the folder that it claims, and what can be checked before anything is written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.data.source import Data
from edgekd.errors import DataError, EdgekdError, TryAgainError
from edgekd.files import lock
from edgekd.pipeline.failures import check_folders
from edgekd.pipeline.plan import Planner
from edgekd.pipeline.preflight import check_networks, preflight
from edgekd.pipeline.schema import Pipeline, StageEntry, data_location, located, stage_location
from edgekd.store import Artifact, Store, StorePlace

SCRATCH = ".scratch"
_IN_USE = "wait for the other run, or choose another --out"


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to a pipeline file. `checked`: the data as `check_first` opened it, if it did."""

    out: Path
    store: StorePlace
    to: str | None = None
    force: Collection[str] = ()
    remeasure: bool = False
    checked: Data | None = None

    def open_store(self, tell: Callable[[str], None] = lambda text: None) -> Store:
        """The store that the run works in; beside one that it may only read, that is a folder of its own."""
        return self.store.open(self.out / SCRATCH, tell)

    def check_folders(self) -> None:
        """Raise ConfigError where a folder cannot be written that has to be."""
        check_folders({"--out": self.out} | ({"--store": self.store.folder} if self.store.mode == "rw" else {}))


def check_start(pipeline: Pipeline, options: RunOptions) -> None:
    """What can be known before several processes are started for a run.

    Raises:
        ConfigError: a folder cannot be written, or a path of the pipeline file is not there.
        TryAgainError: another run works in that folder.
    """
    options.check_folders()
    with claimed(options.out):
        Planner.open(pipeline, options.open_store())


def check_first(pipeline: Pipeline, options: RunOptions, *, here: bool = True) -> RunOptions:
    """All that `run` checks before its first stage that is not in the store; what is refused leaves `out` as it was.

    Args:
        here: whether the run will be on this machine; else only the networks are looked at, not engines and devices.

    Returns:
        The options with which `run` does not do it again.

    Raises:
        EdgekdError: what `run` would end with, its message with the place that it is about.
    """
    missing = [folder for folder in (options.out, *options.out.parents) if not folder.exists()]
    options.check_folders()
    try:
        data = _check_first(pipeline, options, here=here)
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody put something into it
                folder.rmdir()
        raise
    return replace(options, checked=data) if options.store.mode == "rw" else options


def _check_first(pipeline: Pipeline, options: RunOptions, *, here: bool) -> Data:
    with tempfile.TemporaryDirectory() as scratch:  # devices leave what they say of themselves in a store
        planner = Planner.open(pipeline, options.store.open(Path(scratch)))
        planner.fetch = False
        stages, done = until(pipeline, options.to), dict[str, Artifact]()
        try:
            for entry in stages:
                artifact = planner.step(entry, done, force=options.force).artifact
                if artifact is None:
                    check = preflight if here else check_networks
                    check(pipeline, planner, entry, stages)
                    break
                done[entry.name] = artifact
        except EdgekdError as error:
            if not here and isinstance(error, DataError):
                return planner.data  # the networks could not be tried; who runs the file is told of its data
            if (message := in_place(pipeline, error)) == error.message:
                raise
            raise type(error)(message, hint=error.hint) from error
    return planner.data


def until(pipeline: Pipeline, last: str | None) -> list[StageEntry]:
    """The stages up to `last`, or all."""
    names = [entry.name for entry in pipeline.stages]
    return list(pipeline.stages[: names.index(last) + 1 if last in names else len(names)])


def in_place(pipeline: Pipeline, error: EdgekdError, entry: StageEntry | None = None) -> str:
    """The message with the place in the pipeline file: of the data, or of the stage it happened in."""
    places = (str(pipeline.path), "--set ", *(f"{origin}: " for origin in pipeline.tree.origins))
    if error.message.startswith(places) or isinstance(error, TryAgainError):
        return error.message
    if isinstance(error, DataError):
        return located(pipeline, data_location(pipeline, error), error).message
    if entry is None:
        return located(pipeline, (), error).message
    named = EdgekdError(f"{entry.name}: {error.message}")
    return located(pipeline, stage_location(pipeline, entry), named).message


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder. Raises TryAgainError where one works in it."""
    with lock(out / ".lock", timeout_s=0, holder_hint=_IN_USE):
        yield
