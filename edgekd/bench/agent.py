"""What the measuring agent does: latency of several models interleaved, memory of one, time per layer of one.

It runs inside agent.pyz (see `entry` and `pack`), in a process of its own. Python 3.8, standard library, numpy, the
engine.

A job: {"mode": "latency"|"memory"|"profile", "models": [{"name", "runtime", "device", "threads", "path"}], "feeds": the
path of an .npz with one real batch per input name, "cpu": core to pin to or null}; for latency also "min_time_s",
"max_time_s", "min_samples", "quiet_wait_s", "warm_window_s", "warm_min_s", "warm_max_s", "seed", "launch", and
"samples": the .npz to write; for a profile "runs" and "max_s". A runtime is a name of `edgekd.runtimes.registry`, or
"module:Class".
"""

from __future__ import annotations

import importlib
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgekd.bench import loop, machine
from edgekd.errors import BenchError, UnavailableError
from edgekd.runtimes.protocol import Arrays, Runtime, Session
from edgekd.runtimes.registry import RUNTIMES, runtime

QUIET_PERCENT = 5.0
MEMORY_RUNS = 20


@dataclass
class Loaded:
    """A model that is ready to run, and what it took to get there."""

    name: str
    session: Session
    facts: dict[str, Any]


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a job of any mode; raises what the engines raise."""
    if job.get("cpu") is not None:
        _pin(job["cpu"])
    return _MODES[job.get("mode", "latency")](job)


def measure_latency(job: Mapping[str, Any]) -> dict[str, Any]:
    """One launch: wait for quiet, load all models in random order, warm each up, and measure them interleaved."""
    started = time.monotonic()
    facts = machine.fingerprint()
    feeds = read_feeds(job["feeds"])
    quiet = _wait_for_quiet(job["quiet_wait_s"])
    models = list(job["models"])
    random.Random(f"{job['seed']}/{job['launch']}").shuffle(models)  # noqa: S311 (an order, not a secret)
    loaded = [_load(model, feeds) for model in models]
    _progress("warming up")
    warmth = [
        loop.warm_up(m.session.run, window_s=job["warm_window_s"], min_s=job["warm_min_s"], max_s=job["warm_max_s"])
        for m in loaded
    ]
    _progress("measuring")
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
        "samples": job["samples"],
        "seconds": round(time.monotonic() - started, 3),
    }


def measure_memory(job: Mapping[str, Any]) -> dict[str, Any]:
    """Peak resident memory before the one model of the job is loaded, and after 20 runs of it."""
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    before = machine.peak_rss_bytes()
    session = _open(engine, model, feeds)
    loop.time_runs(session.run, MEMORY_RUNS)
    return {
        "name": model["name"],
        "rss_before_load_bytes": before,
        "peak_rss_bytes": machine.peak_rss_bytes(),
        "engine_memory_bytes": session.memory_bytes(),
    }


def profile_layers(job: Mapping[str, Any]) -> dict[str, Any]:
    """Time per layer of the one model of the job, in the engine's order. Alone in its process: it slows a network."""
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    session = _open(engine, model, feeds)
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


def _load(model: Mapping[str, Any], feeds: Arrays) -> Loaded:
    """Import the engine, load the build and run it ten times, each step timed in milliseconds."""
    _progress(f"loading {model['name']}")
    clock = time.perf_counter
    start = clock()
    engine = engine_for(model)
    imported = clock()
    session = _open(engine, model, feeds)
    loaded = clock()
    runs = loop.time_runs(session.run, 10)
    facts = {
        "engine": engine.version(),
        "import_ms": (imported - start) * 1e3,
        "load_ms": (loaded - imported) * 1e3,
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


def _open(engine: Runtime, model: Mapping[str, Any], feeds: Arrays) -> Session:
    session = engine.load(Path(model["path"]), device=model["device"], threads=model["threads"])
    missing = [info.name for info in session.inputs if info.name not in feeds]
    if missing:
        raise BenchError(
            f"{model['name']} has an input {missing[0]!r} that the data does not feed",
            hint=f"the data feeds: {', '.join(sorted(feeds))}",
        )
    session.bind({info.name: feeds[info.name].astype(info.dtype, copy=False) for info in session.inputs})
    return session


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
        _progress(f"waiting up to {limit_s:g} s for the machine to calm down")
    while percent is not None and percent >= QUIET_PERCENT and time.monotonic() - begin < limit_s:
        time.sleep(min(0.5, limit_s))
        percent = machine.pressure()
    reached = None if percent is None else percent < QUIET_PERCENT
    return {"reached": reached, "waited_s": round(time.monotonic() - begin, 3), "pressure_percent": percent}


def _progress(text: str) -> None:
    print(f"progress: {text}", file=sys.stderr, flush=True)
