"""CPU time (user + system) of what a user does all day: `--help`, `--version`, a config error, a fully cached run.

    python benchmarks/startup.py [--runs 20] [--finished FILE OUT STORE] [--json FILE]
    python benchmarks/startup.py --overhead pipelines/digits.yaml [--json FILE]

The commands take turns, so that a noisy machine troubles all of them alike. Prints the median with the 10th and 90th
percentile, the wall time, and the peak memory of each. `--finished` names the pipeline file, the output folder and the
store of a run that has finished; without it the cached run is left out. Byte code is written and used, as Python does
unless it was told otherwise.

`--overhead` runs a pipeline file on an empty store instead, and says what of its wall time (that of the process, from
its start to its end) is neither importing, training, exporting, compiling nor measuring: `rest_s`. Five of these parts
are `timing` of its report.json, where `import_s` begins with the checks before the first stage. What every run imports
before that (typer, pydantic, edgekd's own modules) is measured in processes that do nothing else, and is
`start_import_s`: Python's start, those modules, Python's end. Rehearsals of the networks, keys, the store, the report
and the end of the process are rest. As byte code, digests of edgekd's own sources are there from an earlier run; the
first run on a machine takes longer by both.
`rest_cpu_s` is for a busy machine: CPU time of the same by the run's own report, and of what comes before and after it
in a second run, which is all from the store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS_MS = {"edgekd --help": 150, "a config error": 350, "a fully cached run": 1500}
FIRST = ("edgekd.cli.main", "edgekd.cli.run_command", "edgekd.pipeline.schema", "edgekd.pipeline.runner")
OVERHEAD_LIMITS = {"rest_s": 1.5, "rest_share": 0.03}


def measure(command: list[str], expected: int) -> tuple[float, float, float]:
    """CPU milliseconds, wall milliseconds and peak resident megabytes of one process."""
    started = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall_ms = (time.perf_counter() - started) * 1e3
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}, not {expected}")
    kilobytes = usage.ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return (usage.ru_utime + usage.ru_stime) * 1e3, wall_ms, kilobytes / 1e3


def commands(folder: Path, finished: list[str] | None) -> dict[str, tuple[list[str], int]]:
    """Each command with the exit code that it ends with."""
    wrong = folder / "wrong.yaml"
    wrong.write_text("name: wrong\ndata: {digits: {}}\nstages:\n  - taecher: {model: convnet}\n")
    edgekd = [str(Path(sys.executable).parent / "edgekd")]
    found = {
        "python -c pass": ([sys.executable, "-c", "pass"], 0),
        "edgekd --help": ([*edgekd, "--help"], 0),
        "edgekd --version": ([*edgekd, "--version"], 0),
        "edgekd run --help": ([*edgekd, "run", "--help"], 0),
        "a config error": ([*edgekd, "run", str(wrong)], 2),
    }
    if finished:
        file, out, store = finished
        found["a fully cached run"] = ([*edgekd, "run", file, "--out", out, "--store", store], 0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--finished", nargs=3, metavar=("FILE", "OUT", "STORE"))
    parser.add_argument("--overhead", metavar="FILE", help="a pipeline file to run on an empty store")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if options.overhead:
        found = overhead(options.overhead)
        print(json.dumps(found, indent=1))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        todo = commands(Path(folder), options.finished)
        for command, expected in todo.values():  # the first run writes byte code and warms the disk's cache
            measure(command, expected)
        samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in todo}
        for _ in range(options.runs):
            for name, (command, expected) in todo.items():
                samples[name].append(measure(command, expected))
    rows = [row(name, taken) for name, taken in samples.items()]
    print(f"{'command':<20} {'CPU ms':>8} {'p10':>7} {'p90':>7} {'wall ms':>8} {'peak MB':>8} {'mark ms':>8}")
    for r in rows:
        mark = f"{r['limit_ms']:>8}" if r["limit_ms"] else ""
        figures = f"{r['cpu_ms']:>8.0f} {r['cpu_p10_ms']:>7.0f} {r['cpu_p90_ms']:>7.0f} {r['wall_ms']:>8.0f}"
        print(f"{r['command']:<20} {figures} {r['peak_mb']:>8.0f} {mark}".rstrip())
    document = {"runs": options.runs, "python": platform.python_version(), "cores": os.cpu_count(), "commands": rows}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    else:
        print(json.dumps(document))


def overhead(file: str) -> dict[str, object]:
    """What a run on an empty store spends its wall time on, in seconds; `rest_s`: on nothing of it."""
    with tempfile.TemporaryDirectory() as folder:
        out, store = Path(folder) / "out", Path(folder) / "store"
        words = [str(Path(sys.executable).parent / "edgekd"), "run", file, "--out", str(out), "--store", str(store)]
        start_cpu_s, start_s = start()
        cpu_ms, wall_ms, peak_mb = measure(words, 0)
        timing = timing_of(out)
        again_ms, _, _ = measure(words, 0)
        around_cpu_s = again_ms / 1e3 - timing_of(out)["own_cpu_s"] - start_cpu_s
    work = {name: seconds for name, seconds in timing.items() if not name.startswith("own_")}
    work = {"start_import_s": start_s, **work}
    rest_s = wall_ms / 1e3 - sum(work.values())
    rest_cpu_s = timing["own_cpu_s"] + around_cpu_s
    figures = {"wall_s": wall_ms / 1e3, "cpu_s": cpu_ms / 1e3, **work, "rest_s": rest_s, "rest_cpu_s": rest_cpu_s}
    return {
        "file": file,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "peak_mb": round(peak_mb, 1),
        **{name: round(value, 2) for name, value in figures.items()},
        "rest_share": round(rest_s / (wall_ms / 1e3), 4),
        "limits": OVERHEAD_LIMITS,
    }


def start() -> tuple[float, float]:
    """Medians of CPU and wall seconds of Python's start with what `edgekd run` imports before it opens its data."""
    command = [sys.executable, "-c", f"import {', '.join(FIRST)}"]
    measure(command, 0)
    taken = [measure(command, 0) for _ in range(5)]
    cpu_s, wall_s = (statistics.median(sample[place] for sample in taken) / 1e3 for place in (0, 1))
    return cpu_s, wall_s


def timing_of(out: Path) -> dict[str, float]:
    """`timing` of a run's report.json."""
    found: dict[str, float] = json.loads((out / "report.json").read_text())["timing"]
    return found


def row(name: str, taken: list[tuple[float, float, float]]) -> dict[str, object]:
    cpu = sorted(sample[0] for sample in taken)
    return {
        "command": name,
        "n": len(cpu),
        "cpu_ms": round(statistics.median(cpu), 1),
        "cpu_p10_ms": round(cpu[len(cpu) // 10], 1),
        "cpu_p90_ms": round(cpu[min(len(cpu) - 1, len(cpu) * 9 // 10)], 1),
        "wall_ms": round(statistics.median(sample[1] for sample in taken), 1),
        "peak_mb": round(statistics.median(sample[2] for sample in taken), 1),
        "limit_ms": LIMITS_MS.get(name),
    }


if __name__ == "__main__":
    main()
