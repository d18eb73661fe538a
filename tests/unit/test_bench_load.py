"""Several calls at once: closed loops, open loops with a schedule, the search for a rate; an engine of known time."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fake_runtime
import numpy as np
import pytest

from edgekd.bench import load, loop, statistics, under_load
from edgekd.bench.measure import Subject, measure_rows
from edgekd.bench.settings import BenchSettings, LoadSettings, ThroughputSettings
from edgekd.bench.statistics import Samples
from edgekd.errors import BenchError
from edgekd.report.measured import Latency, Load, Throughput

ROOT = Path(__file__).resolve().parents[2]
MS = 1_000_000
BRIEF = BenchSettings(quick=True, launches=1, min_time_s=0.1, min_samples=20, quiet_wait_s=0.0, profile=False)
ABOUT = {"target": "t", "runtime": "fake", "device": "CPU", "host": None, "model": "m", "precision": "f32"}


def sleeper(ms):
    return lambda: time.sleep(ms / 1e3)


def stalls(ms, *, at, for_ms):
    """1 call of many takes far longer."""
    counted = itertools.count()
    return lambda: time.sleep((for_ms if next(counted) == at else ms) / 1e3)


def test_percentiles_of_known_times_are_exact_to_the_clock(monkeypatch):
    clock = fake_runtime.Clock()
    monkeypatch.setattr(loop, "time", clock)
    times_ns = np.random.default_rng(0).permutation(np.arange(1, 2001)) * 1000
    given = iter(times_ns.tolist() * 2)  # the first call of a visit brings back the caches and is not recorded

    def run():
        clock.now_ns += next(given)

    seen = []
    monkeypatch.setattr(loop, "SETTLE_BELOW_NS", 0)
    monitor = SimpleNamespace(note_if_due=lambda: seen.append(clock.now_ns), note=lambda: None)
    (record,) = loop.interleave([run], [1_000_000], min_time_s=0.0, max_time_s=100.0, min_samples=2000, monitor=monitor)
    arrays = record.arrays()
    assert sorted(arrays["wall_ns"].reshape(-1)) == sorted(times_ns)
    samples = Samples(arrays["wall_ns"], arrays["visit_cpu_ns"], arrays["visit_switches"])
    found = statistics.percentiles([samples], seed=0)
    assert {name: one.value for name, one in found.items() if one} == {
        "p50": 1.0,
        "p90": 1.8,
        "p95": 1.9,
        "p99": 1.98,
    }
    assert seen


def test_closed_loop_calls_from_every_stream_until_there_are_enough():
    threads = set()

    def run():
        threads.add(threading.get_ident())
        time.sleep(0.002)

    burst = load.closed_loop([run, run, run], seconds=0.02, min_calls=30, max_s=5.0)
    assert len(threads) == 3
    assert len(burst.end_ns) >= 30
    assert (burst.end_ns - burst.start_ns).min() >= 2 * MS
    assert (np.diff(burst.end_ns) >= 0).all()
    assert burst.per_s <= 3 / 0.002


def test_closed_loop_of_slow_calls_ends_at_its_limit():
    burst = load.closed_loop([sleeper(20)], seconds=0.01, min_calls=10_000, max_s=0.1)
    assert 1 <= len(burst.end_ns) <= 6


def test_an_error_in_one_stream_is_raised_where_it_was_asked_for():
    def fails():
        raise BenchError("the engine did not run")

    with pytest.raises(BenchError, match="did not run"):
        load.closed_loop([sleeper(1), fails], seconds=0.01, min_calls=1, max_s=1.0)
    with pytest.raises(BenchError, match="did not run"):
        load.open_loop([fails], np.arange(3), grace_s=1.0)


def test_arrivals_are_a_poisson_process_fixed_by_the_seed():
    first, again, other = (load.arrivals(1000.0, 20_000, seed=[seed, 0]) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
    gaps = np.diff(first) / MS
    assert gaps.mean() == pytest.approx(1.0, rel=0.05)
    assert gaps.std() == pytest.approx(1.0, rel=0.05)  # an exponential's deviation is its mean


def test_requests_that_come_at_once_wait_for_those_before_them():
    served = load.open_loop([sleeper(2)], np.zeros(20, dtype=np.int64), grace_s=5.0)
    assert (served.latency_ns >= 2 * MS * np.arange(1, 21)).all()
    two = load.open_loop([sleeper(2)] * 2, np.zeros(20, dtype=np.int64), grace_s=5.0)
    assert (two.latency_ns >= 2 * MS * (np.arange(20) // 2 + 1)).all()


def test_no_request_begins_before_it_is_due():
    due = np.arange(10) * 3 * MS
    begun = []

    def run():
        begun.append(time.perf_counter_ns())

    served = load.open_loop([run], due, grace_s=1.0)
    assert (served.latency_ns >= 0).all()
    assert (np.diff(begun)[1:] > 0).all()
    assert served.seconds >= due[-1] / 1e9
    assert not served.unserved


def test_a_stall_is_felt_by_all_that_was_to_arrive_meanwhile_and_a_closed_loop_hides_it():
    due = np.arange(100) * 2 * MS
    served = load.open_loop([stalls(0.2, at=20, for_ms=60)], due, grace_s=5.0)
    burst = load.closed_loop([stalls(0.2, at=20, for_ms=60)], seconds=0.0, min_calls=100, max_s=5.0)
    closed = np.sort(burst.end_ns - burst.start_ns)
    # 60 ms without an answer: whatever was due in the first 50 of them waited for 10 at least.
    assert (served.latency_ns >= 10 * MS).sum() >= 24
    assert (served.latency_ns >= 10 * MS).sum() > (closed >= 10 * MS).sum() + 10
    assert served.latency_ns[20] >= 60 * MS


def test_a_rate_above_the_capacity_is_not_kept_up_with_and_given_up():
    served = load.open_loop([sleeper(10)], np.arange(100) * MS, grace_s=0.1)
    assert not served.kept_up
    assert served.unserved > 50
    # Those without an answer waited from when they were due until the end.
    assert served.latency_ns[-1] >= 90 * MS
    assert served.per_s <= 100


def test_a_rate_far_below_the_capacity_is_served_whole():
    served = load.open_loop([sleeper(0.1)], np.arange(100) * MS, grace_s=10.0)
    assert served.unserved == 0
    assert (served.latency_ns > 0).all()


@pytest.mark.parametrize(
    ("late", "streams", "kept_up"),
    [(0, 1, True), (3, 1, True), (4, 1, False), (5, 3, True), (6, 3, False), (99, 1, False)],
)
def test_a_queue_is_kept_up_with_while_few_wait_when_the_last_one_arrives(late, streams, kept_up):
    due = np.arange(100) * 10 * MS  # 2 in 100 may wait, beside one in each stream
    ended = due + MS
    ended[-1] = due[-1]
    ended[:late] = due[-1] + MS
    served = load._served(due, ended, streams, latest_ns=2000 * MS)
    assert served.kept_up is kept_up
    assert (served.unserved, served.seconds) == (0, (991 if late else 990) / 1000)


def test_a_request_without_an_answer_is_not_kept_up_with_and_waited_until_the_end():
    due = np.arange(100) * 10 * MS
    ended = due + MS
    ended[50] = -1
    served = load._served(due, ended, 1, latest_ns=2000 * MS)
    assert (served.kept_up, served.unserved, served.latency_ns[50]) == (False, 1, 1500 * MS)


@pytest.mark.parametrize(
    ("values", "measured", "saturated"),
    [
        ([100, 190, 192, 999], [1, 2, 4], [False, True, True]),
        ([100, 200, 400, 800], [1, 2, 4, 8], [False] * 4),
        ([100, 101], [1, 2], [True, True]),
        ([100, 60, 999], [1, 2], [True, True]),
        ([100], [1], [False]),
    ],
)
def test_doubling_ends_where_it_brings_less_than_three_percent(values, measured, saturated):
    given = dict(zip([1, 2, 4, 8], values, strict=False))
    assert load.until_saturated(list(given), given.__getitem__, given=False) == (measured, saturated)
    assert list(load.doubled(20)) == [1, 2, 4, 8, 16]


def test_numbers_that_were_given_are_all_measured():
    values = {1: 100, 4: 101, 2: 300, 8: 301}
    assert load.until_saturated(list(values), values.__getitem__, given=True) == (
        [1, 4, 2, 8],
        [False, False, True, True],
    )


def test_doubling_ends_where_the_engine_has_no_room_and_what_was_given_fails_there():
    def measure(count):
        if count > 2:
            raise BenchError("the engine takes no input (4, 3)")
        return 100.0 * count

    assert load.until_saturated([1, 2, 4, 8], measure, given=False) == ([1, 2], [False, False])
    for counts, given in (([1, 4], True), ([4], False)):
        with pytest.raises(BenchError, match="takes no input"):
            load.until_saturated(counts, measure, given=given)


@pytest.mark.parametrize("border", [3.0, 55.0, 400.0, 800.0, 990.0])
def test_the_search_ends_within_a_tenth_below_the_border(border):
    tried = []
    load.highest(1000.0, lambda rate: tried.append(rate) or rate <= border, until_s=time.monotonic() + 60)
    best = max(rate for rate in tried if rate <= border)
    assert border / best <= load.NEAR**1.01 or len(tried) == load.MOST_TRIALS
    assert best >= border / 1.3
    assert max(tried) < 1000.0


def test_the_search_ends_when_its_time_is_over_or_nothing_passes():
    tried = []
    load.highest(1000.0, lambda rate: bool(tried.append(rate)), until_s=time.monotonic() + 60)
    assert len(tried) == load.MOST_TRIALS
    load.highest(1000.0, lambda rate: pytest.fail("too late"), until_s=time.monotonic() - 1)


@pytest.fixture
def served_in(monkeypatch):
    """Searches over a network that takes some time a call, on a clock of its own; the loops that it came by."""

    def search(call_ms, limit_ms, **more):
        now_s, loops = [0.0], []
        monkeypatch.setattr(load, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

        def serve(rate, count):
            now_s[0] += count / rate
            waited_ms = call_ms / (1 - rate * call_ms / 1e3)
            loops.append((rate, count))
            due = np.arange(count)
            return load.Served(due, np.full(count, waited_ms * MS), 0, kept_up=True, seconds=count / rate)

        how = {"requests": 1000, "fewest": 20, "max_s": 10.0, "search_s": 60.0, **more}
        return load.search(1e3 / call_ms, serve, limit_ns=limit_ms * MS, **how), loops

    return search


def test_the_search_gives_a_slow_network_the_requests_that_p99_needs(served_in):
    ended_at, loops = served_in(10.0, 50.0)
    assert loops[0] == (50.0, 1000)  # 10 s had room for 500, of which p99 is not known
    assert loops[1][0] > 50.0
    assert ended_at is None
    assert sum(count / rate for rate, count in loops) < 60 + 20


def test_the_search_ends_where_no_rate_can_be_judged_after_one_row_that_says_so(served_in):
    assert served_in(500.0, 5000.0) == (1.0, [(1.0, 20)])
    assert served_in(500.0, 5000.0, max_s=30.0) == (1.0, [(1.0, 30)])
    assert served_in(60_000.0, 100_000.0) == (1 / 120, [])  # not even the fewest have room
    assert served_in(10.0, 11.0, search_s=59.0) == (25.0, [(50.0, 1000)])  # lower rates would take 40 s


def test_a_row_that_cannot_be_judged_says_why():
    one = {"rate_per_s": 2.0, "achieved_per_s": 2.0, "kept_up": True}
    about = {**ABOUT, "batch": 1, "streams": 1}
    few = under_load.load_row(about, one, np.full(20, MS), limit_ms=5.0, seed=0)
    assert few["met"] is None
    assert few["note"] == "20 requests are too few for p99: 1000 take 500 s at this rate"
    assert under_load.load_row(about, one, np.full(2000, MS), limit_ms=5.0, seed=0)["note"] is None
    assert under_load.load_row(about, one, np.full(20, MS), limit_ms=None, seed=0)["note"] is None
    Load.model_validate(few)


def test_rates_whose_fewest_requests_take_longer_than_the_time_limit_are_refused():
    with pytest.raises(ValueError, match=r"has 0.01: 20 requests, the fewest, take 2000 s.* rates of at least 0.023"):
        BenchSettings(load=LoadSettings(rates=(50.0, 0.01)))
    BenchSettings(load=LoadSettings(rates=(0.023,)))
    BenchSettings(load=LoadSettings(rates=(0.01,)), time_limit_s=2000.0)


def test_the_bound_of_p99_needs_a_thousand_requests_and_lies_above_it():
    assert load.beyond_99(np.arange(999)) == np.inf
    assert 990 < load.beyond_99(np.arange(1000)) < 1000


def test_throughput_is_counted_over_the_whole_loop_with_its_interval():
    start = np.arange(100) * 10 * MS
    row = under_load.throughput_row(ABOUT, {"batch": 8, "streams": 2, "saturated": True}, start, start + 20 * MS)
    assert row["throughput_per_s"] == pytest.approx(8 * 100 / 1.01, abs=0.001)
    low, high = row["ci95"]["throughput_per_s"]
    assert low <= row["throughput_per_s"] <= high
    assert (row["p50_ms"], row["p99_ms"], row["n"], row["scenario"]) == (20.0, None, 100, "Offline")
    Throughput.model_validate(row)


@pytest.mark.parametrize(
    ("p99_ms", "kept_up", "limit_ms", "met"),
    [
        (4.0, True, 5.0, True),
        (6.0, True, 5.0, False),
        (4.0, False, 5.0, False),
        (4.0, True, None, None),
    ],
)
def test_a_limit_is_met_where_the_whole_interval_lies_below(p99_ms, kept_up, limit_ms, met):
    latency = np.full(2000, MS)
    latency[::50] = p99_ms * MS
    one = {"rate_per_s": 50, "achieved_per_s": 49.9, "kept_up": kept_up}
    about = {**ABOUT, "batch": 1, "streams": 1}
    row = under_load.load_row(about, one, latency, limit_ms=limit_ms, seed=0)
    assert (row["met"], row["p99_ms"], row["p50_ms"]) == (met, p99_ms, 1.0)
    Load.model_validate(row)


def test_a_limit_inside_the_interval_or_too_few_requests_leave_it_open():
    latency = np.full(2000, MS)
    latency[:1000:50] = 9 * MS  # half of the time p99 is 9 ms, half of it 1 ms
    one = {"rate_per_s": 50, "achieved_per_s": 49.9, "kept_up": True}
    about = {**ABOUT, "batch": 1, "streams": 1}
    assert under_load.load_row(about, one, latency, limit_ms=5.0, seed=0)["met"] is None
    few = under_load.load_row(about, one, latency[:900], limit_ms=50.0, seed=0)
    assert (few["met"], few["p99_ms"], few["ci95"]) == (None, None, {"p99_ms": None})


def test_percentiles_of_a_load_are_of_all_its_requests():
    latency = np.arange(1, 1020) * MS
    found = under_load._percentiles(latency, 0)
    assert (found["p50"].value, found["p99"].value) == (510.0, 1009.0)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(fake_runtime.__file__).parent)]))

    def run(settings, *told, progress=lambda line: None):
        subjects = []
        for index, one in enumerate(told):
            path = tmp_path / f"{index}.json"
            path.write_text(json.dumps(one))
            subjects.append(Subject(f"m{index}", "here", "fake_runtime:FakeRuntime", "CPU", "f32", path))
        feeds = {"x": np.zeros((1, 3), np.float32)}
        return measure_rows(subjects, feeds, settings=settings, folder=tmp_path / "out", seed=1, progress=progress)

    return run


def test_throughput_and_load_of_a_build_become_rows_of_the_report(bench):
    settings = BRIEF.model_copy(
        update={
            "throughput": ThroughputSettings(batches=(1, 4), streams=(1, 2)),
            "load": LoadSettings(rates=(1000.0, 500.0)),
        }
    )
    rows = bench(settings, {"sleep_ms": 0.2, "slots": 2})
    assert [(row["batch"], row["streams"]) for row in rows.throughput] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for row in rows.throughput:
        Throughput.model_validate(row)
        assert row["throughput_per_s"] <= row["batch"] * row["streams"] / 0.0002
        assert row["p50_ms"] >= 0.2
    assert [row["rate_per_s"] for row in rows.load] == [500.0, 1000.0]
    for row in rows.load:
        Load.model_validate(row)
        assert row["p50_ms"] >= 0.2
        assert row["met"] is None
        assert row["limit_ms"] is None
    assert rows.sustain is None
    Latency.model_validate(rows.latency[0])


def test_auto_doubles_streams_until_the_engine_has_no_more_slots(bench):
    rows = bench(BRIEF.model_copy(update={"throughput": ThroughputSettings()}), {"sleep_ms": 20, "slots": 1})
    assert [row["streams"] for row in rows.throughput] == [1, 2]
    assert [row["saturated"] for row in rows.throughput] == [True, True]


def test_the_highest_rate_within_the_limit_is_marked_once(bench):
    settings = BRIEF.model_copy(update={"load": LoadSettings(p99_limit_ms=1000.0)})
    rows = bench(settings, {"spin_ms": 0.05}).load
    assert len(rows) >= 2
    assert [row["rate_per_s"] for row in rows] == sorted(row["rate_per_s"] for row in rows)
    marked = [row for row in rows if row["highest"]]
    assert marked == [row for row in rows if row["met"]][-1:]


def test_settings_that_ask_for_nothing_or_nonsense_are_refused():
    with pytest.raises(ValueError, match="it asks for nothing"):
        LoadSettings()
    with pytest.raises(ValueError, match="greater than 0"):
        LoadSettings(rates=(0.0,))
    assert LoadSettings(p99_limit_ms="5ms").p99_limit_ms == 5.0
    assert BenchSettings(sustain_s="30m").sustain_s == 1800.0
    with pytest.raises(ValueError, match="'soon' is no duration"):
        BenchSettings(sustain_s="soon")
