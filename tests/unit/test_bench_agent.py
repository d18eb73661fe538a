"""The measuring agent and its host side, with an engine whose calls sleep or spin for known times."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import fake_runtime
import numpy as np
import pytest

from edgekd.bench import agent, loop, machine
from edgekd.bench.measure import Subject, measure_rows
from edgekd.bench.pack import agent_bytes, carried
from edgekd.bench.rows import Measured, latency_row
from edgekd.bench.settings import BenchSettings
from edgekd.bench.targets.local import Local
from edgekd.errors import BenchError, UnavailableError

ROOT = Path(__file__).resolve().parents[2]
BRIEF = BenchSettings(quick=True, launches=2, min_time_s=0.3, min_samples=20, quiet_wait_s=0.0)
AGENT_MODULES = {
    "edgekd",
    "edgekd.errors",
    "edgekd.bench",
    "edgekd.bench.agent",
    "edgekd.bench.energy",
    "edgekd.bench.entry",
    "edgekd.bench.growth",
    "edgekd.bench.loop",
    "edgekd.bench.machine",
    "edgekd.bench.nvml",
    "edgekd.runtimes",
    "edgekd.runtimes.onnxruntime_providers",
    "edgekd.runtimes.protocol",
    "edgekd.runtimes.registry",
}


@pytest.fixture(autouse=True)
def _fake_engine_on_the_path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(fake_runtime.__file__).parent)]))


@pytest.fixture
def subject(tmp_path):
    def make(model, *, device="CPU", runtime="fake_runtime:FakeRuntime", **told):
        path = tmp_path / f"{model}.json"
        path.write_text(json.dumps(told))
        return Subject(model, "here", runtime, device, "f32", path)

    return make


@pytest.fixture
def bench(tmp_path):
    def run(*subjects, settings=BRIEF, feeds=None, progress=lambda line: None):
        feeds = {"x": np.zeros((1, 3))} if feeds is None else feeds
        rows = measure_rows(subjects, feeds, settings=settings, folder=tmp_path / "out", seed=1, progress=progress)
        return rows.latency, rows.comparisons

    return run


def job(tmp_path, subject, **more):
    np.savez(tmp_path / "feeds.npz", x=np.zeros((1, 3), np.float32))
    model = {"name": "m", "runtime": subject.runtime, "device": "CPU", "threads": 1, "path": str(subject.path)}
    return {"mode": "memory", "models": [model], "feeds": str(tmp_path / "feeds.npz"), **more}


def test_known_sleeps_give_their_percentiles_and_ratio(bench, subject, tmp_path):
    rows, comparisons = bench(
        subject("student", sleep_ms=2),
        subject("teacher", sleep_ms=4, slow_every=5, slow_ms=12),
        settings=BRIEF.model_copy(update={"min_samples": 60}),
    )
    student, teacher = rows
    assert 2.0 <= student["p50_ms"] < 3.5
    assert 4.0 <= teacher["p50_ms"] < 7.0
    assert teacher["p90_ms"] >= 12.0
    assert student["ci95"]["p50_ms"][0] <= student["p50_ms"] <= student["ci95"]["p50_ms"][1]
    assert student["p999_ms"] is None
    assert "p999_ms" not in student["ci95"]
    assert (student["launches"], student["quick"], student["batch"], student["threads"]) == (2, True, 1, 1)
    assert student["n"] >= 40
    assert 200 < student["throughput_per_s"] <= 500
    assert comparisons[0]["a"] == "student.f32@here"
    assert comparisons[0]["b"] == "teacher.f32@here"
    assert comparisons[0]["ratio"] < 0.8


def test_rows_carry_the_names_of_the_report(bench, subject, tmp_path):
    (row,), comparisons = bench(subject("student", sleep_ms=1))
    report = """target runtime device model precision batch threads n launches quick p50_ms p90_ms p95_ms p99_ms ci95
        throughput_per_s load_ms first_ms peak_rss_bytes steady contended throttled power_mode samples_path"""
    assert set(report.split()) <= set(row)
    assert comparisons == []
    json.dumps(row, allow_nan=False)
    launches = json.loads((tmp_path / "out" / "launches.json").read_text())
    assert len(launches) == 2
    assert launches[0]["monitor"][0]["t_s"] >= 0


def test_raw_samples_are_kept_beside_the_rows(bench, subject, tmp_path):
    (row,), _ = bench(subject("student", sleep_ms=1))
    with np.load(tmp_path / "out" / row["samples_path"]) as samples:
        walls = [samples[f"{launch}/wall_ns"] for launch in range(2)]
        assert samples["0/cpu_ns"].shape == walls[0].shape
        assert samples["0/visit_switches"].shape == (len(walls[0]),)
    assert sum(wall.size for wall in walls) == row["n"]
    assert min(wall.min() for wall in walls) / 1e6 == pytest.approx(row["min_ms"])


def test_counters_are_read_per_visit_when_calls_are_short(bench, subject, tmp_path):
    (row,), _ = bench(subject("student", spin_ms=0.01), settings=BRIEF.model_copy(update={"launches": 1}))
    with np.load(tmp_path / "out" / row["samples_path"]) as samples:
        assert "0/cpu_ns" not in samples.files
        assert samples["0/visit_cpu_ns"].min() > 0
    assert row["cpu_p50_ms"] > 0.005


def test_memory_is_measured_in_a_process_per_model(bench, subject):
    (small, large), _ = bench(subject("small", sleep_ms=1), subject("large", sleep_ms=1, grow_mb=64))
    assert large["peak_rss_bytes"] - small["peak_rss_bytes"] > 50 * 2**20
    assert large["peak_rss_bytes"] - large["rss_before_load_bytes"] > 50 * 2**20


def test_what_an_engine_says_of_its_memory_is_kept_and_unknown_is_null(bench, subject):
    (told, silent), _ = bench(subject("told", sleep_ms=1, memory_bytes=4096), subject("silent", sleep_ms=1))
    assert (told["engine_memory_bytes"], silent["engine_memory_bytes"]) == (4096, None)


def test_each_build_leaves_the_time_of_its_layers_the_slowest_first(bench, subject, tmp_path):
    titles = []
    bench(subject("student", sleep_ms=1), subject("idle", sleep_ms=1, layers=[]), progress=titles.append)
    rows = json.loads((tmp_path / "out" / "layers.json").read_text())["rows"]
    about = {"target": "here", "model": "student", "precision": "f32"}
    assert rows == [
        {**about, "layer": "head", "kind": "Gemm", "executed": "f32", "ms": 0.75, "share": 0.75},
        {**about, "layer": "stem", "kind": "Conv", "executed": "int8", "ms": 0.25, "share": 0.25},
    ]
    assert [title for title in titles if ":" not in title][-2:] == [
        "layers of student.f32@here",
        "layers of idle.f32@here",
    ]


def test_without_a_profile_no_layers_are_measured(bench, subject, tmp_path):
    bench(subject("student", sleep_ms=1), settings=BRIEF.model_copy(update={"profile": False}))
    assert not (tmp_path / "out" / "layers.json").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to a core")
def test_spinning_neighbour_on_the_same_core_is_contention(bench, subject):
    core = min(os.sched_getaffinity(0))
    spin = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as neighbour:
        try:
            settings = BRIEF.model_copy(update={"cpu": core, "min_time_s": 0.6})
            rows, (comparison,) = bench(subject("a", spin_ms=1), subject("b", spin_ms=1.5), settings=settings)
        finally:
            neighbour.kill()
    assert [row["contended"] for row in rows] == [True, True]
    assert comparison["led_by"] == "cpu"
    assert comparison["ratio"] == pytest.approx(1 / 1.5, rel=0.15)


def test_missing_device_is_unavailable(bench, subject):
    with pytest.raises(UnavailableError, match="no device MISSING") as caught:
        bench(subject("student", device="MISSING"))
    assert caught.value.hint == "use CPU"


def test_missing_engine_is_unavailable(bench, subject):
    with pytest.raises(UnavailableError, match="no_such_engine"):
        bench(subject("student", runtime="no_such_engine:Runtime"))


def test_unknown_runtime_names_the_known_ones(bench, subject):
    with pytest.raises(BenchError, match="unknown runtime 'openvin'") as caught:
        bench(subject("student", runtime="openvin"))
    assert "openvino" in caught.value.hint


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"refuse": True}, "fake cannot read this file"),
        ({"bug": True}, "RuntimeError: deep inside the engine"),
        ({"crash": True}, "died .signal SIGABRT."),
        ({"input": "tokens"}, "input 'tokens' that the data does not feed"),
    ],
)
def test_failing_engine_is_one_line_and_a_hint(bench, subject, told, message):
    with pytest.raises(BenchError, match=message) as caught:
        bench(subject("student", **told))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_agent_that_takes_too_long_is_ended(bench, subject):
    begin = time.monotonic()
    with pytest.raises(BenchError, match="ended after 2 s"):
        bench(subject("student", sleep_ms=60_000), settings=BRIEF.model_copy(update={"time_limit_s": 2.0}))
    assert time.monotonic() - begin < 30


def test_wrong_arguments_are_refused_before_anything_starts(bench, subject):
    one = subject("student", sleep_ms=1)
    with pytest.raises(BenchError, match="nothing to measure"):
        bench()
    with pytest.raises(BenchError, match="given twice"):
        bench(one, one)
    with pytest.raises(BenchError, match="has 3 rows, not 1"):
        bench(one, feeds={"x": np.zeros((3, 3))})


def test_interrupt_kills_the_agent(bench, subject, tmp_path):
    def interrupt(line):
        if line.endswith("measuring"):
            raise KeyboardInterrupt

    pid_file = tmp_path / "pid"
    with pytest.raises(KeyboardInterrupt):
        bench(subject("student", sleep_ms=1, pid_file=str(pid_file)), progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_agent_ends_when_its_input_closes(subject, tmp_path):
    told = job(tmp_path, subject("student", sleep_ms=600_000))
    (tmp_path / "agent.pyz").write_bytes(agent_bytes())
    command = [sys.executable, "agent.pyz"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=tmp_path) as process:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()
        process.stderr.readline()  # the engine chatters when it loads: from here on the agent sleeps in a call
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=20) == 1
        assert process.stdout.read() == b""


def test_result_is_the_only_thing_on_standard_output(subject, tmp_path):
    with Local().open([]) as place:
        result = place.run(job(tmp_path, subject("student")), limit_s=60, progress=lambda line: None)
    assert set(result) == {
        *("name", "rss_before_load_bytes", "peak_rss_bytes", "rss_bytes", "engine_memory_bytes"),
        *("memory_growth_bytes_per_call", "leaks", "device_times", "energy"),
    }


def test_agent_loads_nothing_but_its_own_few_files():
    script = "import sys, edgekd.bench.entry, edgekd.bench.agent; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {name for name in loaded if name.partition(".")[0] == "edgekd"} == AGENT_MODULES
    assert not loaded & {"torch", "pydantic", "onnx", "ruamel"}


CARRIED = [*carried(), ROOT / "edgekd" / "bench" / "targets" / "keeper.py"]
# Methods of str and Path, and names of modules, that came after 3.8.
LATER = {"removeprefix", "removesuffix", "is_relative_to", "with_stem", "readlink", "hardlink_to", "bit_count",
         "to_thread", "pairwise", "batched", "randbytes", "cache"}  # fmt: skip
BUILT_IN = {"dict", "list", "tuple", "set", "frozenset", "type", "Callable", "Mapping", "Sequence", "Iterator"}


@pytest.mark.parametrize("path", CARRIED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_the_agent_carries_is_written_in_python_3_8(path):
    """No later syntax, no `dict[str, int]` that runs (annotations do not), no later method or argument."""
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    never = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    annotations = {id(inner) for branch in never for inner in ast.walk(branch)} | {
        id(inner)
        for node in ast.walk(tree)
        for given in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if given is not None
        for inner in ast.walk(given)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and id(node) not in annotations:
            assert node.value.id not in BUILT_IN, f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in LATER, f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call):
            assert "strict" not in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}: strict="
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and _types(node, annotations))
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body) or not any(
        isinstance(node, ast.FunctionDef) for node in ast.walk(tree)
    )


def _types(node, annotations):
    """Whether an `|` that runs has None or a type beside it."""
    if id(node) in annotations:
        return False
    sides = (node.left, node.right)
    known = {"int", "str", "float", "bool", "Path", *BUILT_IN}
    return any(getattr(s, "value", 0) is None or getattr(s, "id", "") in known for s in sides)


def test_models_are_visited_there_and_back_again():
    order = []
    records = loop.interleave(
        [lambda name=name: order.append(name) or time.sleep(0.012) for name in "abc"],
        [12e6, 12e6, 12e6],
        min_time_s=0.05,
        max_time_s=0.5,
        min_samples=20,
        monitor=machine.Monitor(),
    )
    assert "".join(order).startswith("aabbccccbbaa" * 2)
    assert all(record.arrays()["wall_ns"].shape == (len(record.wall_ns), 2) for record in records)


@pytest.mark.parametrize(("waiting", "least_s", "most_s"), [(0.0, 0.05, 0.15), (0.5, 0.1, 0.2), (1.0, 0.2, 9.0)])
def test_time_that_was_spent_waiting_for_a_core_does_not_count(monkeypatch, waiting, least_s, most_s):
    clock = SimpleNamespace(now=0.0)
    times = SimpleNamespace(
        perf_counter=lambda: clock.now,
        perf_counter_ns=lambda: round(clock.now * 1e9),
        process_time_ns=lambda: round(clock.now * 1e9 * (1 - waiting)),
    )
    monkeypatch.setattr(loop, "time", times)
    monkeypatch.setattr(loop, "_waited_s", lambda: clock.now * waiting)
    monitor = SimpleNamespace(note_if_due=lambda: None, note=lambda: None)

    def call():
        clock.now += 0.001

    loop.interleave([call], [1e6], min_time_s=0.05, max_time_s=0.2, min_samples=20, monitor=monitor)
    assert least_s <= clock.now <= most_s


def test_warm_up_ends_early_when_steady_and_says_so_when_not():
    steady = loop.warm_up(lambda: time.sleep(0.005), window_s=0.02, min_s=0.05, max_s=30.0)
    assert steady.stable
    assert steady.seconds < 30
    growing = iter(range(1, 1000))
    restless = loop.warm_up(lambda: time.sleep(0.002 * next(growing)), window_s=0.001, min_s=0.01, max_s=0.1)
    assert not restless.stable


def test_fingerprint_is_stable_plain_and_without_the_host_name():
    first, second = machine.fingerprint(), machine.fingerprint()
    assert first == second
    assert first["cores"] >= 1
    assert machine.environment()["host"] not in first.values()
    assert machine.environment(["numpy", "no-such-package"])["packages"] == {
        "numpy": np.__version__,
        "no-such-package": None,
    }


def test_throttling_is_unknown_without_counters_and_seen_with_them(monkeypatch):
    monkeypatch.setattr(machine, "throttled_now", lambda: None)
    for counts, throttled in (([None, None], None), ([3, 3], False), ([3, 4], True)):
        given = iter(counts)
        monkeypatch.setattr(machine, "throttle_events", lambda given=given: next(given))
        monitor = machine.Monitor()
        monitor.note()
        assert monitor.throttled() is throttled


def interleaved(*factors, launches=1):
    """Launches of models at 1 ms per call, each slower by its factor from the middle on; no counter says why."""
    facts = {"import_ms": 1.0, "load_ms": 1.0, "runs_1_to_10_ms": [1.0] * 10, "warm_stable": True, "engine": "1.0"}
    facts |= {"read_ms": None, "compile_ms": 0.5}
    result = {"machine": {"power_mode": None}, "quiet": {"reached": True}, "throttled": None}
    result |= {"steal_share": None, "pressure_percent": 1.5}
    result["models"] = {str(index): facts for index in range(len(factors))}
    everyone = [
        Measured(str(index), "CPU", {"peak_rss_bytes": 1, "rss_before_load_bytes": 1}) for index in range(len(factors))
    ]
    for one, factor in zip(everyone, factors, strict=True):
        wall = np.full((40, 10), 1_000_000)
        wall[20:] = 1_000_000 * factor
        counters = {"visit_cpu_ns": wall.sum(axis=1), "visit_switches": np.zeros(40, dtype=np.int64)}
        for _ in range(launches):
            one.add(result, {"wall_ns": wall, **counters})
    return [latency_row({"batch": 1}, one, everyone, seed=0, samples_path="x.npz") for one in everyone]


def test_all_models_slowing_down_together_is_throttling():
    assert [(row["throttled"], row["steady"]) for row in interleaved(1.2, 1.2)] == [(True, False), (True, False)]
    assert [(row["throttled"], row["steady"]) for row in interleaved(1.2, 1.0)] == [(None, False), (None, True)]


@pytest.mark.parametrize(("launches", "few"), [(1, True), (2, True), (3, False)])
def test_a_row_says_when_its_launches_are_too_few(launches, few):
    (row,) = interleaved(1.0, launches=launches)
    assert (row["launches"], row["few_launches"]) == (launches, few)


def test_a_model_alone_has_no_reference_that_could_tell_throttling():
    (row,) = interleaved(1.2)
    assert (row["throttled"], row["steady"], row["drift"]) == (None, False, 0.2)
    assert (row["read_ms"], row["compile_ms"], row["steal_share"], row["pressure_percent"]) == (None, 0.5, None, 1.5)


def test_launch_waits_for_a_quiet_machine_but_not_for_ever(monkeypatch):
    percents = iter([40.0, 20.0, 1.0])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(machine, "pressure", lambda: next(percents))
    assert agent._wait_for_quiet(60.0)["reached"] is True
    monkeypatch.setattr(machine, "pressure", lambda: 40.0)
    assert agent._wait_for_quiet(0.01)["reached"] is False
    monkeypatch.setattr(machine, "pressure", lambda: None)
    assert agent._wait_for_quiet(60.0)["reached"] is None


def test_quick_is_shorter_in_everything_and_given_values_win():
    full, quick = BenchSettings().effort(), BenchSettings(quick=True).effort()
    assert (full.min_time_s, full.min_samples, full.quiet_wait_s) == (10.0, 1000, 60.0)
    assert (quick.min_time_s, quick.min_samples, quick.quiet_wait_s) == (2.0, 100, 5.0)
    assert BenchSettings(quick=True, min_time_s=7).effort().min_time_s == 7.0
    with pytest.raises(ValueError, match="pins all threads to one core"):
        BenchSettings(cpu=0, threads=2)
