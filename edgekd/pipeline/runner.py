"""Runs a pipeline: each stage from the store or anew; the report is drawn whatever happens."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from edgekd.data.readers.sound import listed
from edgekd.data.sources import SPLITS
from edgekd.errors import EdgekdError, StageError
from edgekd.pipeline import deliver
from edgekd.pipeline.board import StageBoard, board_of, check_board
from edgekd.pipeline.clock import Clock
from edgekd.pipeline.failures import explain_os_error
from edgekd.pipeline.keys import NEVER, identity
from edgekd.pipeline.log import Log
from edgekd.pipeline.plan import Planner, Step
from edgekd.pipeline.preflight import preflight
from edgekd.pipeline.processes import Team, lost
from edgekd.pipeline.schema import Pipeline, StageEntry
from edgekd.pipeline.start import RunOptions, claimed, in_place, until
from edgekd.report.drawings import Remembered
from edgekd.report.lineage import MANIFEST
from edgekd.stages.context import Context
from edgekd.stages.kinds import KINDS
from edgekd.store import Artifact, Draft, Store

_LOCK_S = 6 * 3600.0


class Terminated(BaseException):
    """SIGTERM arrived; unwinds like KeyboardInterrupt, so that drafts are removed and the report is drawn."""


@dataclass
class Outcome:
    """What became of a run."""

    exit_code: int = 0
    states: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Artifact] = field(default_factory=dict)
    made_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    problems: list[tuple[str, str | None]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    clock: Clock = field(default_factory=Clock)
    fingerprint: str | None = None
    data_files: dict[str, str] = field(default_factory=dict)
    learned_from: list[str] = field(default_factory=list)
    split_fingerprints: dict[str, str] = field(default_factory=dict)
    broken_images: dict[str, int] = field(default_factory=dict)
    whole: bool = True


def run(pipeline: Pipeline, options: RunOptions, log: Log) -> Outcome:
    """Run a pipeline and leave its report and artefacts in `options.out`; errors end up in the outcome, not here.

    Raises:
        ConfigError: the output folder or the store cannot be written, or the remote store's URL makes no sense.
        UnavailableError: a package that the remote store needs is missing.
        TryAgainError: another run works in that folder.
    """
    options.check_folders()
    with claimed(options.out):
        log.open(options.out / "log.jsonl")
        store = options.open_store(log.warning)
        outcome, started = Outcome(), time.time()
        # Until this run has ended, what lies in the folder is no delivery that could be verified.
        (options.out / MANIFEST).unlink(missing_ok=True)
        run = _Run(pipeline, options, store, log, outcome)
        previous = {number: signal.signal(number, run.stop) for number in (signal.SIGTERM, *_interrupts())}
        try:
            run.go()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            outcome.seconds = time.time() - started
        _draw_report(pipeline, options.out, outcome, started, log, Remembered(store.drawings))
        _judge_gates(pipeline, outcome, log)
        return outcome


def _interrupts() -> list[signal.Signals]:
    """SIGINT, unless somebody ignores it or has a handler of their own."""
    return [signal.SIGINT] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []


class _Run:
    """The stages of one run, in order."""

    def __init__(self, pipeline: Pipeline, options: RunOptions, store: Store, log: Log, outcome: Outcome) -> None:
        self.pipeline, self.options, self.log, self.outcome = pipeline, options, log, outcome
        self.store = store
        self.planner: Planner | None = None
        self.force = {*options.force, *(("bench",) if options.remeasure else ())}
        self.current: StageEntry | None = None
        self.started = 0.0
        self.team = Team()
        self.warnings: list[str] = []
        self.stopped_by: type[BaseException] | None = None

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Hear SIGTERM or SIGINT."""
        self.stopped_by = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        raise self.stopped_by

    def go(self) -> None:
        """Run everything; an error is recorded once, with the stage it belongs to."""
        try:
            try:
                self._everything()
            except Exception as error:
                if self.stopped_by:  # the import of an engine makes an ImportError of what it meets
                    raise self.stopped_by from error
                raise
        except EdgekdError as error:
            self._failed(error.exit_code, self._located(error), error.hint)
        except (KeyboardInterrupt, Terminated) as stop:
            code, word = (143, "terminated") if isinstance(stop, Terminated) else (130, "interrupted")
            kept = "the last checkpoint is kept: the same command goes on from there"
            self._failed(code, self._located(EdgekdError(word)), kept)
        except SystemExit:
            # Ours never raise it here: a user's factory, scheme or knowledge called exit.
            ended = StageError(
                "code of your own ended the process", hint="take `exit()` out of what the pipeline imports"
            )
            self._failed(ended.exit_code, self._located(ended), ended.hint)
        except OSError as error:
            refused = explain_os_error(error)
            self._failed(refused.exit_code, refused.message if error.filename else self._located(refused), refused.hint)
        except Exception as error:
            if (gone := lost(error)) is not None:
                self._failed(gone.exit_code, self._located(gone), gone.hint)
                return
            # The one place where a bug of ours is caught: its traceback goes to the log, the user gets its name.
            where = self.log.bug(error)
            self._failed(
                1, f"a bug in edgekd: {type(error).__name__}: {error}", f"the traceback is in {where}; please report it"
            )
        finally:
            known = {state["name"] for state in self.outcome.states}
            for entry in self.pipeline.stages:
                if entry.name not in known:
                    self._state(entry, "skipped", None, 0.0, "not reached" if self.outcome.error else "after --to")

    def _everything(self) -> None:
        self.planner = Planner.open(self.pipeline, self.store, self.options.checked)
        check_board(self.pipeline)
        self.outcome.fingerprint = self.planner.data.fingerprint
        self.outcome.data_files = self.planner.data.digests
        self.outcome.learned_from = list(self.planner.data.files_of("train"))
        self.outcome.split_fingerprints = {name: self.planner.data.split_fingerprint(name) for name in SPLITS}
        self._left_out()
        with self.store.in_use_by(identity(self.pipeline)) as usage:
            self._stages()
            if self.outcome.whole:
                usage.finish()
        self.team.end()

    def _stages(self) -> None:
        assert self.planner is not None
        checked = self.options.checked is not None
        for entry in self.pipeline.stages:
            self.current = None  # looking a stage up is not yet that stage, and no longer the one before
            step = self.planner.step(entry, self.outcome.done, force=self.force)
            if not step.cached and not checked:
                self._preflight(entry)
                checked = True
            self.current, self.started, self.warnings = entry, time.monotonic(), []
            with contextlib.closing(board_of(self.pipeline, entry, self.options.out)) as board:
                self._stage(step, board)
            if entry.name == self.options.to:
                self.outcome.whole = entry == self.pipeline.stages[-1]
                break
        self.current = None
        for note in self.planner.devices.notes():
            self.log.warning(note)

    def _preflight(self, entry: StageEntry) -> None:
        """What can be known before `entry` starts. A wrong file or a missing engine belongs to no stage."""
        assert self.planner is not None
        self.current, self.started = None, time.monotonic()
        try:
            with self.outcome.clock.importing():
                preflight(self.pipeline, self.planner, entry, until(self.pipeline, self.options.to))
        except StageError:
            self.current = entry
            raise

    def _stage(self, step: Step, board: StageBoard) -> None:
        assert self.planner is not None and step.key is not None and step.found is not None
        artifact, state = step.artifact, "cached"
        self.store.use(step.key)
        self.outcome.made_of[step.entry.name] = step.found
        if artifact is None:
            with self.store.locked(step.key, timeout_s=_LOCK_S, on_wait=self._waiting):
                # Another run may have built it while this one waited for the lock.
                artifact = None if step.entry.name in self.force else self.store.get(step.key)
                if artifact is None:
                    work = self.store.work(step.key)
                    state = "resumed" if any(work.iterdir()) else "ran"
                    why = "starts" if step.why == NEVER else step.why  # on a first run that holds of every stage
                    self.log.info(f"{step.entry.name}: {'going on from a checkpoint' if state == 'resumed' else why}")
                    artifact = self._execute(step, work, board)
        seconds = time.monotonic() - self.started
        self.outcome.done[step.entry.name] = artifact
        self.planner.remember(step, artifact)
        board.finish(artifact)
        deliver.deliver_stage(self.options.out, step.entry.name, artifact, self.pipeline.roles)
        self._state(step.entry, state, step.key, seconds, step.why)
        took = f" in {seconds:.1f} s" if state != "cached" else " (remote)" if artifact.found == "remote" else ""
        self.log.info(f"{step.entry.name}: {state}{took}")
        # A remote store that was added later gets what was made before it was there.
        if self.store.pushes is not None and artifact.found == "local" and not KINDS[step.entry.name].on_device:
            brought = self.store.pushes(artifact, made=state != "cached")
            if brought and state == "cached":
                self.log.info(f"{step.entry.name}: brought to the remote store, which lacked it")

    def _waiting(self) -> None:
        self.log.info("waiting for another run that builds this")

    def _execute(self, step: Step, work: Path, board: StageBoard) -> Artifact:
        assert self.planner is not None and step.key is not None
        kind = KINDS[step.entry.name]
        module, _, name = kind.function.partition(":")
        with self.outcome.clock.importing():
            if "torch" in kind.packages:
                from edgekd.train.processor import set_up_processor

                set_up_processor(self.pipeline.settings.train)
            function = getattr(__import__(module, fromlist=[name]), name)  # as a statement would: these are timed
        if kind.trains:
            self.team.start(step.entry.name, step.key, self._inputs(step), self._made_by(step))
        with self.store.publish(step.key) as draft:
            draft.record.update(stage=step.entry.name, pipeline=self.pipeline.settings.name, created=time.time())
            with self.outcome.clock.working(step.entry.name):
                function(self._context(step, draft, work, board))
            draft.record["seconds"] = round(time.monotonic() - self.started, 3)
        artifact = self.store.get(step.key, verify=False)
        assert artifact is not None
        return artifact

    def _context(self, step: Step, draft: Draft, work: Path, board: StageBoard) -> Context:
        assert self.planner is not None
        name, settings, common = step.entry.name, step.entry.settings, self.planner.common()
        log, moment = self.log, self.log.bar if self.log.bars else None
        inputs = self._inputs(step)
        made_by = self._made_by(step)
        said = (log.info, log.epoch, moment, self._warn, board.live)
        return Context(name, settings, common, inputs, draft, work, self.store, made_by, *said)

    def _left_out(self) -> None:
        """Say which broken images the data is read without."""
        assert self.planner is not None
        for split, found in self.planner.data.left_out_images.items():
            self.outcome.broken_images[split] = len(found)
            if found:
                self.log.warning(f"data: {len(found)} broken images of {split} are left out: {listed(found)}")

    def _warn(self, text: str) -> None:
        assert self.current is not None
        self.warnings.append(text)
        self.log.warning(f"{self.current.name}: {text}")

    def _made_by(self, step: Step) -> dict[str, Any]:
        """Digests of the code and versions of the libraries that this stage and its inputs are made by."""
        assert step.found is not None
        return {part: step.found.get(part) for part in ("source", "packages", "networks", "python")}

    def _inputs(self, step: Step) -> dict[str, Artifact]:
        return {name: self.outcome.done[name] for name in KINDS[step.entry.name].takes if name in self.outcome.done}

    def _located(self, error: EdgekdError) -> str:
        return in_place(self.pipeline, error, self.current)

    def _failed(self, code: int, message: str, hint: str | None) -> None:
        self.outcome.exit_code = code
        stage = self.current.name if self.current is not None else None
        self.outcome.error = {"message": message, "hint": hint, "stage": stage, "log": "log.jsonl"}
        self.log.error(message, hint)
        if self.current is not None:
            self._state(self.current, "failed", None, time.monotonic() - self.started, message)

    def _state(self, entry: StageEntry, state: str, key: str | None, seconds: float, why: str) -> None:
        done = self.outcome.done.get(entry.name)
        cache = done.found if done is not None and state == "cached" else None if state == "skipped" else "miss"
        row = {"name": entry.name, "state": state, "cache": cache, "key": key, "seconds": seconds, "why": why}
        warnings = done.facts.get("warnings", []) if done else self.warnings if entry is self.current else []
        self.outcome.states.append(row | {"warnings": warnings})


def _draw_report(
    pipeline: Pipeline, out: Path, outcome: Outcome, started: float, log: Log, remembered: Remembered
) -> None:
    """Draw the report; a disk that is too full for it fails the run, but does not hide an earlier error."""
    try:
        deliver.draw_report(pipeline, out, outcome, started, remembered)
    except OSError as error:
        refused = explain_os_error(error)
        if outcome.error is not None:
            log.info(f"the report is not complete: {refused.message}")
            return
        outcome.exit_code = refused.exit_code
        outcome.error = {"message": refused.message, "hint": refused.hint, "stage": None, "log": "log.jsonl"}
        outcome.report |= {"status": "failed", "exit_code": refused.exit_code, "error": outcome.error}
        log.error(refused.message, refused.hint)


def _judge_gates(pipeline: Pipeline, outcome: Outcome, log: Log) -> None:
    if outcome.exit_code != 0:
        return
    for index, (gate, row) in enumerate(zip(pipeline.settings.gates, outcome.report["gates"], strict=True)):
        where = pipeline.tree.where(("gates", index))
        if row["verdict"] == "undecided" and row["value"] is not None and not row["broken"]:
            strict = "; `undecided: fail` would end the run with 5" if gate.otherwise == "fail" else ""
            log.warning(f"{where}: budget undecided: {row['label']}, measured {deliver.measured(row)}{strict}")
        if row["broken"]:
            outcome.exit_code = 5
            log.error(
                f"{where}: budget broken: {row['label']}, measured {deliver.measured(row)} ({row['verdict']})",
                _mended(row),
            )


def _mended(row: dict[str, Any]) -> str:
    """What to do about a broken budget."""
    if row["verdict"] == "failed":
        return "improve the network, or change the limit there"
    if row["value"] is None:
        return "the run did not measure it: change or remove that budget, or set `undecided: pass` there"
    return "more test samples or launches narrow the interval; or change the limit there"
