"""One SingleStream run of MLPerf LoadGen over a session of edgekd's, in a process of its own.

    python benchmarks/latency_loadgen.py RUNTIME MODEL SECONDS CPU FOLDER

An exception in LoadGen's callbacks kills the process, so the first call is made before it starts. LoadGen writes its
logs to FOLDER; standard output gets {"p50_ms", "min_ms"} of the calls alone, by our clock: the rest of LoadGen's
latency is its own way to the call and back. Only the thread that calls is held to the core: LoadGen's own thread that
writes logs would push it off, many times a second. `switches`: how often others did, in `seconds`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg  # type: ignore[import-not-found]
import numpy as np

from edgekd.runtimes.protocol import noise
from edgekd.runtimes.registry import runtime

# LoadGen prepares its queries for calls of this length; shorter ones would leave it without.
SHORTEST_NS = 10_000


def main() -> None:
    engine, model, seconds, cpu, folder = sys.argv[1:]
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(cpu)})
    session = runtime(engine).load(Path(model), device="CPU", threads=1)
    session.bind(noise(session.inputs))
    session.run()
    run, clock, walls = session.run, time.perf_counter_ns, []
    begin: list[tuple[int, float]] = []

    def issue(samples: Any) -> None:
        if not begin:
            os.sched_setaffinity(0, {int(cpu)})
            begin.append((switches(), time.monotonic()))
        start = clock()
        run()
        walls.append(clock() - start)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(samples[0].id, 0, 0)])

    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(float(seconds) * 1000)
    settings.single_stream_expected_latency_ns = SHORTEST_NS
    output = lg.LogOutputSettings()
    output.outdir, output.copy_summary_to_stdout = folder, False
    log = lg.LogSettings()
    log.log_output, log.enable_trace = output, False
    sut = lg.ConstructSUT(issue, lambda: None)
    library = lg.ConstructQSL(1, 1, lambda indices: None, lambda indices: None)
    os.sched_setaffinity(0, everywhere)  # threads that LoadGen starts inherit it
    lg.StartTestWithLogSettings(sut, library, settings, log)
    (before, began) = begin[0]
    pushed = {"switches": switches() - before, "seconds": round(time.monotonic() - began, 3)}
    lg.DestroyQSL(library)
    lg.DestroySUT(sut)
    print(json.dumps({"p50_ms": float(np.median(walls)) / 1e6, "min_ms": min(walls) / 1e6, **pushed}))


def switches() -> int:
    """How often this thread, which LoadGen calls back in, lost its core to another."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


if __name__ == "__main__":
    main()
