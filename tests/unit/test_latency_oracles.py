"""What benchmarks/latency_oracles.py reads, injects and judges; its measurements are the benchmark's own business."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekd.bench.statistics import Samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(BENCHMARKS))
try:
    import latency_engines
    import latency_figures
    import latency_networks
    import latency_oracles
    import latency_others
finally:
    sys.path.remove(str(BENCHMARKS))


class CountedSession:
    inputs = outputs = ()

    def __init__(self):
        self.calls = 0

    def run(self):
        self.calls += 1


def side(p50_ms, disturbed=0.0, **more):
    return {"p50_ms": p50_ms, "min_ms": 0.9 * p50_ms, "disturbed": disturbed, **more}


def test_benchmark_app_below_a_millisecond_is_read_from_its_microseconds():
    found = latency_others.read_benchmark_app((GOLDEN / "benchmark_app_30_us.txt").read_text())
    assert found == {
        "n": 49741,
        "p50_ms": pytest.approx(0.03808),
        "mean_ms": pytest.approx(0.04044),
        "min_ms": pytest.approx(0.02396),
        "max_ms": pytest.approx(3.98461),
    }


def test_benchmark_app_above_a_millisecond_is_read_from_its_milliseconds():
    found = latency_others.read_benchmark_app((GOLDEN / "benchmark_app_3_ms.txt").read_text())
    assert found == {"n": 410, "p50_ms": 7.24, "mean_ms": 7.19, "min_ms": 2.76, "max_ms": 14.97}


def test_benchmark_app_without_a_median_is_an_error_and_no_figure():
    text = (GOLDEN / "benchmark_app_3_ms.txt").read_text().replace("Median", "Middle")
    with pytest.raises(ValueError, match="Median"):
        latency_others.read_benchmark_app(text)


def test_loadgen_is_read_from_its_detailed_log():
    found = latency_others.read_loadgen((GOLDEN / "loadgen_3_ms.txt").read_text())
    assert found == {"n": 659, "p50_ms": 2.956761, "mean_ms": 3.030131, "min_ms": 2.695552, "max_ms": 5.640421}


def test_loadgen_run_that_loadgen_calls_invalid_gives_no_figure():
    text = (GOLDEN / "loadgen_3_ms.txt").read_text().replace('"VALID"', '"INVALID"')
    with pytest.raises(ValueError, match="INVALID"):
        latency_others.read_loadgen(text)


@pytest.mark.parametrize("units", [0, 1, 37])
def test_injected_work_is_done_in_every_call_and_counted(units):
    inner = CountedSession()
    session = latency_engines.WorkingSession(inner, units)
    for _ in range(5):
        session.run()
    steps = pow(48271, 5 * units, 2**31 - 1)  # the generator is a multiplication: so many steps are a power
    assert (inner.calls, session.state) == (5, steps)


def test_injecting_engine_loads_what_its_file_names(tmp_path):
    onnx = latency_networks.write_network("30 us", tmp_path / "model.onnx")
    work = tmp_path / latency_engines.WORK
    work.write_text(json.dumps({"runtime": "onnxruntime", "path": str(onnx), "units": 3}))
    session = latency_engines.Working().load(work, device="CPU", threads=1)
    session.bind({"x": np.zeros((1, 3, 12, 12), dtype=np.float32)})
    session.run()
    assert session.state == 48271**3 % (2**31 - 1)


def test_calibration_finds_what_a_call_and_a_unit_of_work_cost(tmp_path, monkeypatch):
    now = 0

    class Session(CountedSession):
        def bind(self, feeds):
            pass

        def run(self):
            nonlocal now
            now += 90_000

    class Engine:
        def load(self, path, *, device, threads):
            return Session()

    def burn(state, units):
        nonlocal now
        now += 70 * units
        return state

    monkeypatch.setattr(latency_engines, "runtime", lambda name: Engine())
    monkeypatch.setattr(latency_engines, "burn", burn)
    monkeypatch.setattr(latency_engines.time, "thread_time_ns", lambda: now)
    found = latency_engines.calibrate("fake", tmp_path, units=50, blocks=4, calls=3)
    assert found == {"call_ns": 90_000, "unit_ns": 70}


def test_openvino_is_asked_for_every_call_and_what_was_not_recorded_is_left_out(tmp_path):
    from edgekd.bench.rows import Measured

    recorded = np.arange(40.0).reshape(4, 10)
    asked = np.concatenate(
        [[99.0] * 7, np.c_[np.full(4, 77.0), recorded].reshape(-1)]
    )  # warm-up, then a call to settle
    np.save(tmp_path / latency_engines.REQUEST_MS, asked)
    counts = np.zeros(4, dtype=np.int64)
    one = Measured("openvino", "CPU", launches=[Samples(np.full((4, 10), 30_000), counts, counts)])
    assert latency_oracles.asked(one, tmp_path / "model.xml") == {"p50_ms": 19.5, "min_ms": 0.0}


def test_networks_are_the_same_every_time(tmp_path):
    a, b = (latency_networks.write_network("100 us", tmp_path / name).read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize(
    ("found", "n", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 1998, table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_of_a_share_is_wilsons(found, n, low, high):
    assert latency_figures.share(found, n)["ci95"] == pytest.approx([low, high], abs=1e-4)


@pytest.mark.parametrize(
    ("ours", "theirs", "request_ms", "verdict"),
    [
        (0.039, 0.030, 0.0305, "within"),  # 9 us above
        (0.041, 0.030, 0.0305, "off"),  # 11 us above
        (3.1, 3.0, 3.0, "within"),  # 100 us, but 3.3%
        (3.2, 3.0, 3.0, "off"),
        (3.0, 3.0, 3.1, "off"),  # by OpenVINO's own clock 3.3% are too much
    ],
)
def test_rounds_are_judged_by_the_bars(ours, theirs, request_ms, verdict):
    pair = {"ours": side(ours), "request": side(request_ms), "theirs": side(theirs)}
    assert latency_oracles.judge([pair] * 3, 3)["verdict"] == verdict


def test_one_bad_round_of_three_does_not_decide():
    good, bad = ({"ours": side(3.0), "theirs": side(theirs)} for theirs in (3.0, 6.0))
    assert latency_oracles.judge([good, bad, good], 3)["verdict"] == "within"


@pytest.mark.parametrize(("smallest", "within"), [(2.8, True), (2.0, False)])
def test_disturbed_rounds_are_skipped_but_the_smallest_times_still_judged(smallest, within):
    pair = {"ours": side(3.0), "theirs": side(3.0, disturbed=0.3)}
    pair["ours"]["min_ms"] = smallest
    row = latency_oracles.judge([pair] * 4, 2)
    assert (row["verdict"], row["smallest"]["within"]) == ("skipped", within)
    assert row["reason"] == "more than 20% disturbed in 4 of 4 rounds"


@pytest.mark.parametrize(("key", "share"), [("disturbed", 0.21), ("pressure", 0.21)])
def test_round_is_disturbed_by_switches_or_by_tasks_that_wait(key, share):
    quiet = {"ours": side(1.0, 0.2, pressure=0.2), "theirs": side(1.0, None)}
    assert not latency_oracles.disturbed(quiet)
    assert latency_oracles.disturbed({**quiet, "ours": {**quiet["ours"], key: share}})


def test_disturbed_rounds_are_repeated_at_most_as_often_as_wanted():
    shares = iter([0.5, 0.0, 0.5, 0.0])
    pairs = latency_oracles.in_turns(lambda _: {"ours": side(1.0, next(shares)), "theirs": side(1.0)}, 2)
    assert len(pairs) == 4
    assert latency_oracles.judge(pairs, 2)["verdict"] == "within"
    assert len(latency_oracles.in_turns(lambda _: {"ours": side(1.0, 0.5), "theirs": side(1.0)}, 2)) == 4


def test_false_and_found_verdicts_are_counted_apart():
    trials = [{"verdict": word, "ratio": 1.0, "contended": False} for word in ("faster", "slower", "equivalent")]
    assert latency_oracles.verdicts(trials, "A/A")["found"] == 2
    assert latency_oracles.verdicts(trials, "+5%")["found"] == 1
