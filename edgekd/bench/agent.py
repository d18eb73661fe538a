"""What the measuring agent does: latency of several models interleaved; memory, energy and time per layer of one.

It runs inside agent.pyz (see `entry` and `pack`), in a process of its own. Python 3.8, standard library, numpy, the
engine.

A job: {"mode": "latency"|"memory"|"profile" (further ones in `load_jobs`), "models": [{"name", "runtime", "device",
"threads", "path"}], "feeds": the path of an .npz with one real batch per input name, "cpu": core to pin to or null};
for latency also "min_time_s", "max_time_s", "min_samples", "quiet_wait_s", "warm_window_s", "warm_min_s", "warm_max_s",
"seed", "launch", and "samples": the .npz to write; for the others see their functions. A runtime is a name of
`edgekd.runtimes.registry`, or "module:Class".
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgekd.bench import energy, growth, loop, machine
from edgekd.errors import BenchError, UnavailableError
from edgekd.runtimes.protocol import Arrays, Runtime, Session, TimedByDevice
from edgekd.runtimes.registry import RUNTIMES, runtime

if TYPE_CHECKING:
    Job = Callable[[Mapping[str, Any]], dict[str, Any]]

QUIET_PERCENT = 5.0
MEMORY_RUNS = 20
DEVICE_RUNS = 50
IDLE_S = 2.0


@dataclass
class Loaded:
    """A model that is ready to run, and what it took to get there."""

    name: str
    session: Session
    facts: dict[str, Any]


def work(job: Mapping[str, Any], further: Mapping[str, Job] = MappingProxyType({})) -> dict[str, Any]:
    """The result of a job of any mode, `further` ones included; raises what the engines raise."""
    if job.get("cpu") is not None:
        _pin(job["cpu"])
    return {**_MODES, **further}[job.get("mode", "latency")](job)


def measure_latency(job: Mapping[str, Any]) -> dict[str, Any]:
    """One launch: wait for quiet, load all models in random order, warm each up, and measure them interleaved."""
    started = time.monotonic()
    facts = machine.fingerprint()
    feeds = read_feeds(job["feeds"])
    quiet = _wait_for_quiet(job["quiet_wait_s"])
    models = list(job["models"])
    random.Random(f"{job['seed']}/{job['launch']}").shuffle(models)  # noqa: S311 (an order, not a secret)
    loaded = [load_model(model, feeds) for model in models]
    progress("warming up")
    warmth = [
        loop.warm_up(m.session.run, window_s=job["warm_window_s"], min_s=job["warm_min_s"], max_s=job["warm_max_s"])
        for m in loaded
    ]
    progress("measuring")
    monitor = machine.Monitor()
    records = loop.interleave(
        [m.session.run for m in loaded],
        [w.call_ns for w in warmth],
        min_time_s=job["min_time_s"],
        max_time_s=job["max_time_s"],
        min_samples=job["min_samples"],
        monitor=monitor,
    )
    names = [m.name for m in loaded]
    arrays = {f"{i}/{key}": array for i, r in enumerate(records) for key, array in r.arrays().items()}
    np.savez(job["samples"], **arrays)
    for index, model in enumerate(loaded):
        warm = warmth[index]
        model.facts.update(index=index, warm_stable=warm.stable, warm_seconds=round(warm.seconds, 3))
        model.session.close()
    return {
        "machine": facts,
        "quiet": quiet,
        "order": names,
        "models": {m.name: m.facts for m in loaded},
        "monitor": monitor.notes,
        "throttled": monitor.throttled(),
        "steal_share": monitor.mean("steal_share"),
        "pressure_percent": monitor.mean("pressure_percent"),
        "samples": job["samples"],
        "seconds": round(time.monotonic() - started, 3),
    }


def measure_memory(job: Mapping[str, Any]) -> dict[str, Any]:
    """Memory of the one model of the job, alone in its process: before it is loaded, after 20 runs, and its growth.

    Also what only a process of its own can tell: the times of the device's own clock, and energy. "leak_s": seconds
    that growth is watched for; "energy_s": seconds of calls that energy is taken over, where the machine counts it.
    """
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    before = machine.peak_rss_bytes()
    session = open_session(engine, model, feeds)
    loop.time_runs(session.run, MEMORY_RUNS)
    found = {
        "name": model["name"],
        "rss_before_load_bytes": before,
        "peak_rss_bytes": machine.peak_rss_bytes(),
        "rss_bytes": machine.rss_bytes(),
        "engine_memory_bytes": session.memory_bytes(),
        "device_times": vars(session.device_times(DEVICE_RUNS)) if isinstance(session, TimedByDevice) else None,
        "energy": None,
    }
    calls, rss = growth.watch(session.run, job["leak_s"]) if job.get("leak_s") else ([], [])
    found.update(growth.growth(calls, rss))
    meter = energy.find_meter(on_gpu=not model["device"].upper().startswith("CPU"), root=machine.ROOT)
    if meter is not None and job.get("energy_s"):
        idle_s = min(IDLE_S, job["energy_s"])
        found["energy"] = energy.per_inference(session.run, meter, idle_s=idle_s, seconds=job["energy_s"])
    session.close()
    return found


def profile_layers(job: Mapping[str, Any]) -> dict[str, Any]:
    """Time per layer of the one model of the job, in the engine's order. Alone in its process: it slows a network.

    "runs" and "max_s": how many inferences, and for how many seconds at most.
    """
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    session = open_session(engine, model, feeds)
    bound = {info.name: feeds[info.name].astype(info.dtype, copy=False) for info in session.inputs}
    session.close()
    layers = engine.profile(
        Path(model["path"]),
        bound,
        device=model["device"],
        threads=model["threads"],
        runs=job["runs"],
        max_s=job["max_s"],
    )
    return {"name": model["name"], "layers": [vars(layer) for layer in layers]}


_MODES = {"latency": measure_latency, "memory": measure_memory, "profile": profile_layers}


def load_model(model: Mapping[str, Any], feeds: Arrays) -> Loaded:
    """Import the engine, load the build and run it ten times, each step timed in milliseconds."""
    progress(f"loading {model['name']}")
    clock = time.perf_counter
    start = clock()
    engine = engine_for(model)
    imported = clock()
    session = open_session(engine, model, feeds)
    loaded = clock()
    runs = loop.time_runs(session.run, 10)
    phases = getattr(session, "phases", None)  # an adapter of one's own may know none
    facts = {
        "engine": engine.version(),
        "import_ms": (imported - start) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
        "read_ms": phases.read_ms if phases else None,
        "compile_ms": phases.compile_ms if phases else None,
        "runs_1_to_10_ms": [ns / 1e6 for ns in runs],
    }
    return Loaded(model["name"], session, facts)


def engine_for(model: Mapping[str, Any]) -> Runtime:
    """The adapter that a job names in "runtime", after it found its engine and the "device" here."""
    name = model["runtime"]
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            engine = cast(Runtime, getattr(importlib.import_module(module), attribute)())
        elif name in RUNTIMES:
            engine = runtime(name)
        else:
            raise BenchError(f"unknown runtime {name!r}", hint=f"known are: {', '.join(sorted(RUNTIMES))}")
        engine.version()
        engine.check(model["device"], run=True)
    except ImportError as error:
        raise UnavailableError(f"runtime {name} cannot be imported: {error}", hint="see `edgekd doctor`") from error
    return engine


def open_session(engine: Runtime, model: Mapping[str, Any], feeds: Arrays) -> Session:
    """A session of a job's model with the feeds bound to it."""
    session = engine.load(Path(model["path"]), device=model["device"], threads=model["threads"])
    bind(session, model, feeds)
    return session


def bind(session: Session, model: Mapping[str, Any], feeds: Arrays) -> None:
    """Bind to every input of a model the feed of its name, in its type."""
    missing = [info.name for info in session.inputs if info.name not in feeds]
    if missing:
        raise BenchError(
            f"{model['name']} has an input {missing[0]!r} that the data does not feed",
            hint=f"the data feeds: {', '.join(sorted(feeds))}",
        )
    bound = {info.name: feeds[info.name].astype(info.dtype, copy=False) for info in session.inputs}
    for info in session.inputs:
        if info.shape and info.shape[0] not in (-1, len(bound[info.name])):
            raise BenchError(
                f"{model['name']} takes {info.shape[0]} rows at once, not {len(bound[info.name])}",
                hint=f"measure it with batch {info.shape[0]}, or export it with an open batch axis",
            )
    session.bind(bound)


def read_feeds(path: str) -> Arrays:
    """The arrays of an .npz by name."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: np.ascontiguousarray(stored[name]) for name in stored.files}


def _pin(cpu: int) -> None:
    try:
        os.sched_setaffinity(0, {cpu})
    except (AttributeError, OSError) as error:
        raise UnavailableError(
            f"the process cannot be pinned to core {cpu}: {error}", hint="leave out `cpu`"
        ) from error


def _wait_for_quiet(limit_s: float) -> dict[str, Any]:
    """Wait until few tasks wait for a core. `reached` is None where the system does not say."""
    begin = time.monotonic()
    percent = machine.pressure()
    if percent is not None and percent >= QUIET_PERCENT and limit_s > 0:
        progress(f"waiting up to {limit_s:g} s for the machine to calm down")
    while percent is not None and percent >= QUIET_PERCENT and time.monotonic() - begin < limit_s:
        time.sleep(min(0.5, limit_s))
        percent = machine.pressure()
    reached = None if percent is None else percent < QUIET_PERCENT
    return {"reached": reached, "waited_s": round(time.monotonic() - begin, 3), "pressure_percent": percent}


def progress(text: str) -> None:
    """Tell the host, in one line, what happens."""
    print(f"progress: {text}", file=sys.stderr, flush=True)
