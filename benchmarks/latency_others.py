"""The oracles: OpenVINO's benchmark_app and MLPerf LoadGen, each in a process of its own, and what they print, read."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ARGUMENTS = ["-hint", "none", "-api", "sync", "-nstreams", "1", "-nthreads", "1", "-pin", "YES", "-ip", "f32"]
ARGUMENTS += ["-infer_precision", "f32"]
# Telemetry is off: importing OpenVINO would report it.
_BENCHMARK_APP = """import os, sys
sys.modules["openvino_telemetry"] = None
cpu = int(sys.argv.pop(1))
os.sched_setaffinity(0, {cpu})
from openvino.tools.benchmark.main import main
main()"""
_UNITS_MS = {"us": 1e-3, "ms": 1.0}
DETAIL = "mlperf_log_detail.txt"


class MissingError(Exception):
    """An oracle is not installed."""


def benchmark_app(model: Path, *, seconds: int, cpu: int) -> dict[str, Any]:
    """Its figures of a model, on a core, and the involuntary switches of its whole process."""
    command = [sys.executable, "-c", _BENCHMARK_APP, str(cpu), "-m", str(model), *ARGUMENTS, "-t", str(seconds)]
    return _run(command, read_benchmark_app)


def loadgen(engine: str, model: Path, *, seconds: float, cpu: int) -> dict[str, Any]:
    """LoadGen's SingleStream figures of the session that edgekd measures; `call`: of the calls alone, by our clock."""
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise MissingError("mlperf_loadgen is not installed: pip install -e '.[oracles]'")
    with tempfile.TemporaryDirectory() as folder:
        script = str(Path(__file__).with_name("latency_loadgen.py"))
        command = [sys.executable, script, engine, str(model), str(seconds), str(cpu), folder]

        def read(said: str) -> dict[str, Any]:
            return {**read_loadgen((Path(folder) / DETAIL).read_text()), "call": json.loads(said.splitlines()[-1])}

        found = _run(command, read)
        call = found["call"]
        return {**found, "switches": call["switches"], "process_s": call["seconds"]}


def _run(command: list[str], read: Any) -> dict[str, Any]:
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    return {**read(text), "switches": usage.ru_nivcsw, "process_s": round(time.monotonic() - begin, 3)}


def read_benchmark_app(text: str) -> dict[str, Any]:
    """n, and p50, mean, min and max in milliseconds, of standard output. (Its JSON rounds to .01 ms; standard output
    gives calls below 1 ms in microseconds with two digits.)"""
    names = {"Median": "p50_ms", "Average": "mean_ms", "Min": "min_ms", "Max": "max_ms"}
    found: dict[str, Any] = {"n": int(_only(r"Count:\s+(\d+) iterations", text).group(1))}
    for word, name in names.items():
        value = _only(rf"{word}:\s+([\d.]+) (us|ms)", text)
        found[name] = float(value.group(1)) * _UNITS_MS[value.group(2)]
    return found


def _only(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"benchmark_app printed no {pattern!r}:\n{text[-2000:]}")
    return found


def read_loadgen(text: str) -> dict[str, Any]:
    """n, and p50, mean, min and max in milliseconds, of mlperf_log_detail.txt.

    Raises:
        ValueError: LoadGen itself calls the run invalid, with its reasons.
    """
    lines = [json.loads(line.removeprefix(":::MLLOG ")) for line in text.splitlines() if line.startswith(":::MLLOG ")]
    result = {line["key"]: line["value"] for line in lines if line["key"].startswith("result_")}
    if result["result_validity"] != "VALID":
        raise ValueError(f"LoadGen's run is {result['result_validity']}: {result.get('result_invalid_reason')}")
    keys = {"p50_ms": "50.00_percentile", "mean_ms": "mean", "min_ms": "min", "max_ms": "max"}
    times = {name: result[f"result_{key}_latency_ns"] / 1e6 for name, key in keys.items()}
    return {"n": result["result_query_count"], **times}
