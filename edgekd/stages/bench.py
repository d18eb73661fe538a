"""bench: latency of every build of a target, interleaved, in processes of their own; devices measure at one time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace

from edgekd.bench.measure import Rows, Subject, measure_rows
from edgekd.bench.process import StoppedError
from edgekd.bench.targets.book import target_for
from edgekd.bench.targets.ssh import SshTarget
from edgekd.runtimes.protocol import TensorInfo, noise
from edgekd.stages.context import Context
from edgekd.stages.settings import BenchStage

_TELLING = threading.Lock()
_TOLD = ("launch", "throughput", "load", "long run")


def run(context: Context) -> None:
    """Measure target by target; rows and comparisons in report.json's form are the facts.

    First what this machine measures, alone: nothing else is to be done on it meanwhile. Then the devices, all at once;
    what is on one device stays one after the other.
    """
    targets, found = context.common.targets, dict[str, Rows]()
    for name in targets:
        if targets[name].host is None:
            found[name] = _measure(context, name, None)
    found |= _measure_devices(context, _by_device(context))
    context.draft.facts.update(
        latency=[row for name in targets for row in found[name].latency],
        comparisons=[{**pair, "target": name} for name in targets for pair in found[name].comparisons],
        throughput=[row for name in targets for row in found[name].throughput],
        load=[row for name in targets for row in found[name].load],
    )


def _by_device(context: Context) -> list[list[str]]:
    """The targets that are measured on each device. Two names may stand for one device."""
    groups: dict[tuple[str, int | None], list[str]] = {}
    for name, settings in context.common.targets.items():
        if settings.host is not None:
            address = target_for(settings.host).address
            groups.setdefault((address.host, address.port), []).append(name)
    return list(groups.values())


def _measure_devices(context: Context, devices: Sequence[Sequence[str]]) -> dict[str, Rows]:
    """Each device in a thread of its own; when one fails, or somebody ends the run, the others are ended, too."""
    if not devices:
        return {}
    stop = threading.Event()

    def on_one(names: Sequence[str]) -> Iterator[tuple[str, Rows]]:
        for name in names:
            host = context.common.targets[name].host
            assert host is not None
            yield name, _measure(context, name, replace(target_for(host), stop=stop))

    with ThreadPoolExecutor(len(devices), thread_name_prefix="edgekd-device") as pool:
        working = [pool.submit(lambda names=names: dict(on_one(names))) for names in devices]  # type: ignore[misc]
        try:
            wait(working, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # what is done does not hear it
    errors = [error for error in (one.exception() for one in working) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error
    return {name: measured for one in working for name, measured in one.result().items()}


def _measure(context: Context, target: str, on: SshTarget | None) -> Rows:
    """The builds of one target on its device, or on this machine."""
    options, compiled = context.options(BenchStage), context.inputs["compile"]
    # The quantized build first: comparisons then speak of it, held against the others.
    builds = [b for b in reversed(compiled.facts["builds"]) if b["target"] == target]
    subjects = [
        Subject(
            model=b["model"],
            target=target,
            runtime=b["runtime"],
            device=b["device"],
            precision=b["precision"],
            path=compiled.path(f"{b['folder']}/{b['file']}"),
            threads=options.threads,
        )
        for b in builds
    ]
    # Networks may take different inputs of the data; each build is fed those that it names.
    inputs = {info["name"]: TensorInfo(**info) for build in builds for info in build["inputs"]}
    feeds = noise(inputs.values(), options.batch, context.common.seed)
    folder = context.draft.folder / target
    folder.mkdir()
    rows = measure_rows(
        subjects,
        feeds,
        settings=options,
        folder=folder,
        seed=context.common.seed,
        progress=_teller(context, target),
        on=on,
        host=context.common.targets[target].host,
    )
    for row in rows.latency:
        if row.get("samples_path"):
            row["samples_path"] = f"{target}/{row['samples_path']}"
    return rows


def _teller(context: Context, target: str) -> Callable[[str], None]:
    """One line a launch, a load or a long run; what these do inside stays out of the log."""

    def tell(line: str) -> None:
        if line.startswith(_TOLD) and ":" not in line:
            with _TELLING:
                context.tell(f"bench: {target}  {line}")

    return tell
