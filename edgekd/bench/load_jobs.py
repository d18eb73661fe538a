"""Jobs of the measuring agent that keep a build busy: its throughput, its latency under a load, a long run of it.

As in `agent`, with these modes: "throughput", "rates", "sustain", and "describe". Python 3.8, standard library, numpy,
the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench import growth, load, loop, machine, sustain
from edgekd.bench.agent import bind, engine_for, load_model, progress, read_feeds
from edgekd.errors import BenchError
from edgekd.runtimes.protocol import Arrays, Runtime

MOST_STREAMS = 64
MOST_ROWS = 64
GRACE_S = 5.0


def measure_throughput(job: Mapping[str, Any]) -> dict[str, Any]:
    """Closed loops of the one model of the job, for numbers of rows and streams until more bring nothing.

    "batches" and "streams": lists, or null for 1, 2, 4, ..; "seconds", "min_calls", "max_s" of each loop; "samples": an
    .npz with "<i>/start_ns" and "<i>/end_ns" for the i-th entry of `loops` [{batch, streams, saturated}].
    """
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    arrays: dict[str, Any] = {}
    loops: list[dict[str, Any]] = []

    def best_of(batch: int) -> float:
        most: list[float] = []

        def with_streams(streams: int) -> float:
            progress(f"batch {batch}, {streams} streams")
            with _lanes(engine, model, _rows(feeds, batch), streams) as runs:
                load.closed_loop(runs, seconds=job["seconds"] / 10, min_calls=2 * streams, max_s=job["seconds"])
                burst = load.closed_loop(
                    runs, seconds=job["seconds"], min_calls=max(job["min_calls"], 4 * streams), max_s=job["max_s"]
                )
            index = len(arrays) // 2
            arrays[f"{index}/start_ns"], arrays[f"{index}/end_ns"] = burst.start_ns, burst.end_ns
            most.append(burst.per_s * batch)
            return most[-1]

        streams = job["streams"] or list(load.doubled(MOST_STREAMS))
        counts, saturated = load.until_saturated(streams, with_streams, given=bool(job["streams"]))
        loops.extend({"batch": batch, "streams": n, "saturated": s} for n, s in zip(counts, saturated))  # noqa: B905
        return max(most)

    batches = job["batches"] or _batches(engine, model)
    load.until_saturated(batches, best_of, given=bool(job["batches"]))
    np.savez(job["samples"], **arrays)
    return {"name": model["name"], "loops": loops, "engine": engine.version()}


def measure_rates(job: Mapping[str, Any]) -> dict[str, Any]:
    """Open loops of the one model of the job: Poisson arrivals at the given "rates", and at those that a search for the
    highest one whose p99 keeps within "limit_ms" comes by (null: no search).

    "streams"; "requests" of each loop and the most seconds that they may spread over, "max_s", but never less than
    "fewest"; "search_s"; "samples": an .npz with "<i>/due_ns" and "<i>/latency_ns" for the i-th of `loops`
    [{rate_per_s, achieved_per_s, kept_up}].
    """
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    arrays: dict[str, Any] = {}
    loops: list[dict[str, Any]] = []
    limit_ns = (job["limit_ms"] or 0) * 1e6
    with _lanes(engine, model, feeds, job["streams"]) as runs:
        warm_s = min(1.0, job["max_s"] / 10)
        load.closed_loop(runs, seconds=warm_s / 2, min_calls=2 * len(runs), max_s=job["max_s"])
        capacity = load.closed_loop(runs, seconds=warm_s, min_calls=20, max_s=job["max_s"]).per_s

        def serve(rate: float, count: int) -> load.Served:
            progress(f"{rate:.4g} requests a second")
            due = load.arrivals(rate, count, seed=[job["seed"], len(loops)])
            served = load.open_loop(runs, due, grace_s=min(GRACE_S, job["max_s"]))
            index = len(loops)
            arrays[f"{index}/due_ns"], arrays[f"{index}/latency_ns"] = served.due_ns, served.latency_ns
            loops.append({"rate_per_s": rate, "achieved_per_s": served.per_s, "kept_up": served.kept_up})
            return served

        for rate in job["rates"]:
            serve(float(rate), max(job["fewest"], min(job["requests"], int(rate * job["max_s"]))))
        if limit_ns:
            more = {key: job[key] for key in ("requests", "fewest", "max_s", "search_s")}
            unjudged = load.search(capacity, serve, limit_ns=limit_ns, **more)
            if unjudged is not None:
                why = f"{load.ENOUGH} requests, which p99 needs, take longer than is left of {job['search_s']:g} s"
                progress(f"the search ended at {unjudged:.4g} a second: {why}")
    np.savez(job["samples"], **arrays)
    return {"name": model["name"], "loops": loops, "capacity_per_s": capacity, "engine": engine.version()}


def measure_sustained(job: Mapping[str, Any]) -> dict[str, Any]:
    """A long run of the first model of the job, interleaved with the second, its reference, if there is one.

    "seconds"; "warm_window_s", "warm_min_s", "warm_max_s" as for latency. See `sustain.sustain` for the result.
    """
    feeds = read_feeds(job["feeds"])
    loaded = [load_model(model, feeds) for model in job["models"]]
    progress("warming up")
    warmth = [
        loop.warm_up(m.session.run, window_s=job["warm_window_s"], min_s=job["warm_min_s"], max_s=job["warm_max_s"])
        for m in loaded
    ]
    monitor = machine.Monitor()
    runs = [m.session.run for m in loaded]
    calls_ns = [w.call_ns for w in warmth]
    found = sustain.sustain(runs, calls_ns, seconds=job["seconds"], monitor=monitor, progress=progress)
    found.update(growth.growth(found["calls"], found["rss_bytes"]))
    return {**found, "throttled": monitor.throttled()}


def describe(job: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of the one model of the job, for builds that come without the facts of `compile`."""
    (model,) = job["models"]
    session = engine_for(model).load(Path(model["path"]), device=model["device"], threads=model["threads"])
    return {"inputs": [info.as_dict() for info in session.inputs]}


@contextmanager
def _lanes(
    engine: Runtime, model: Mapping[str, Any], feeds: Arrays, streams: int
) -> Iterator[list[Callable[[], None]]]:
    """One call for each stream, over one loaded build."""
    if not hasattr(engine, "load_streams"):
        raise BenchError(f"{model['runtime']} has no streams", hint="its adapter needs a method `load_streams`")
    sessions = engine.load_streams(
        Path(model["path"]), device=model["device"], threads=model["threads"], streams=streams
    )
    try:
        for session in sessions:
            bind(session, model, feeds)
        yield [session.run for session in sessions]
    finally:
        for session in sessions:
            session.close()


def _rows(feeds: Arrays, batch: int) -> Arrays:
    """The feeds with as many rows as a batch has: the same ones over again."""
    return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in feeds.items()}


def _batches(engine: Runtime, model: Mapping[str, Any]) -> list[int]:
    """1, 2, 4, .. rows, or the one batch that a build takes, if its batch axis is not open."""
    session = engine.load(Path(model["path"]), device=model["device"], threads=model["threads"])
    sizes = {info.shape[0] for info in session.inputs if info.shape}
    session.close()
    return [max(sizes)] if sizes and -1 not in sizes else list(load.doubled(MOST_ROWS))


MODES = {
    "throughput": measure_throughput,
    "rates": measure_rates,
    "sustain": measure_sustained,
    "describe": describe,
}
