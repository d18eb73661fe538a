"""Statistics of latency on samples whose truth is known."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgekd.bench import statistics
from edgekd.bench.statistics import Estimate, Samples

ROUNDS = 60


def synthetic(rng, *, factor=1.0, launches=5, calls=5, launch_sd=0.003, moods=None, cpu_factor=None, switches=0):
    """Launches of one model at 1 ms per call: moods shared with its rivals, effects of launch, visit and call."""
    made = []
    for launch in range(launches):
        shape = (2 * ROUNDS, calls)
        mood = np.repeat(moods[launch], 2)[:, None] if moods is not None else 0.0
        own = rng.normal(0, launch_sd) + rng.normal(0, 0.01, (shape[0], 1)) + rng.normal(0, 0.03, shape)
        wall = (1e6 * factor * np.exp(mood + own)).astype(np.int64)
        cpu = (1e6 * calls * (cpu_factor or factor) * np.exp(rng.normal(0, 0.003, shape[0]))).astype(np.int64)
        made.append(Samples(wall, cpu, np.full(shape[0], switches)))
    return made


def pair(seed, factor, **options):
    rng = np.random.default_rng(seed)
    moods = rng.normal(0, 0.1, (options.get("launches", 5), ROUNDS))
    return synthetic(rng, factor=factor, moods=moods, **options), synthetic(rng, moods=moods, **options)


def one_launch(wall_ms):
    wall = np.asarray(wall_ms, dtype=np.float64).reshape(-1, 10) * 1e6
    return Samples(wall.astype(np.int64), np.full(len(wall), 10**6), np.zeros(len(wall), dtype=np.int64))


def test_percentiles_are_order_statistics_of_all_samples():
    values = np.random.default_rng(0).permutation(np.arange(1, 10001))
    found = statistics.percentiles([one_launch(values[:5000]), one_launch(values[5000:])], seed=0)
    assert {name: estimate.value for name, estimate in found.items()} == {
        "p50": 5000.0,
        "p90": 9000.0,
        "p95": 9500.0,
        "p99": 9900.0,
        "p999": 9990.0,
    }
    assert all(estimate.low < estimate.value < estimate.high for estimate in found.values())


@pytest.mark.parametrize(
    ("n", "given"),
    [
        (20, ["p50"]),
        (90, ["p50"]),
        (100, ["p50", "p90"]),
        (990, ["p50", "p90", "p95"]),
        (1000, ["p50", "p90", "p95", "p99"]),
    ],
)
def test_percentile_with_fewer_than_ten_samples_beyond_is_left_out(n, given):
    found = statistics.percentiles([one_launch(np.arange(n))], seed=0)
    assert [name for name, estimate in found.items() if estimate] == given


def test_percentile_intervals_cover_the_truth():
    covered = 0
    for trial in range(40):
        launches = synthetic(np.random.default_rng(trial), launch_sd=0.0)
        p50 = statistics.percentiles(launches, seed=trial)["p50"]
        covered += p50.low <= 1.0 <= p50.high
    assert covered >= 35


def test_percentile_interval_is_no_narrower_than_students_between_launches():
    launches = [one_launch(np.full(100, ms)) for ms in (1.0, 1.02, 0.99)]
    p50 = statistics.percentiles(launches, seed=0)["p50"]
    logs = np.log([1.0, 1.02, 0.99])
    half = 4.303 * logs.std(ddof=1) / 3**0.5
    assert (p50.low, p50.high) == pytest.approx((np.exp(logs.mean() - half), np.exp(logs.mean() + half)))


def test_launches_too_short_for_a_percentile_of_their_own_still_give_one_together():
    launches = [one_launch(np.arange(1, 61) + shift) for shift in (0, 100)]
    p90 = statistics.percentiles(launches, seed=0)["p90"]
    assert 35 < p90.low < p90.value < p90.high <= 160  # Student's interval of two such launches starts below 1


def test_percentile_interval_knows_that_neighbouring_samples_depend_on_each_other():
    values = np.random.default_rng(0).normal(10, 1, 200)
    alone = statistics.percentiles([one_launch(np.random.default_rng(1).normal(10, 1, 2000))], seed=0)["p50"]
    in_blocks = statistics.percentiles([one_launch(np.repeat(values, 10))], seed=0)["p50"]
    assert in_blocks.high - in_blocks.low > 2 * (alone.high - alone.low)


def test_same_seed_gives_the_same_intervals():
    a, b = pair(3, 1.02)
    assert statistics.percentiles(a, seed=7) == statistics.percentiles(a, seed=7)
    assert statistics.compare(a, b, seed=7, cpu_may_lead=True) == statistics.compare(a, b, seed=7, cpu_may_lead=True)


def test_model_against_itself_is_rarely_called_different():
    verdicts = [statistics.compare(*pair(s, 1.0), seed=s, cpu_may_lead=False).verdict for s in range(40)]
    assert sum(verdict in ("faster", "slower") for verdict in verdicts) <= 2
    assert "equivalent" in verdicts


@pytest.mark.parametrize(
    ("factor", "verdict", "share"), [(1.05, "slower", 0.95), (1 / 1.05, "faster", 0.95), (1.02, "slower", 0.8)]
)
def test_injected_change_is_found_through_the_moods_of_the_machine(factor, verdict, share):
    found = [statistics.compare(*pair(s, factor), seed=s, cpu_may_lead=False) for s in range(20)]
    assert sum(one.verdict == verdict for one in found) >= share * len(found)
    assert np.median([one.ratio.value for one in found]) == pytest.approx(factor, rel=0.005)


def test_ratio_intervals_cover_the_truth_when_launches_differ():
    trials = [statistics.compare(*pair(s, 1.0, launch_sd=0.01), seed=s, cpu_may_lead=False).ratio for s in range(60)]
    assert sum(ratio.low <= 1 <= ratio.high for ratio in trials) >= 52


def test_launches_may_differ_in_length():
    a, b = pair(0, 1.05)
    shorter = [Samples(s.wall_ns[:40], s.visit_cpu_ns[:40], s.visit_switches[:40]) for s in (a[0], b[0])]
    found = statistics.compare([shorter[0], *a[1:]], [shorter[1], *b[1:]], seed=0, cpu_may_lead=False)
    assert found.verdict == "slower"


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (Estimate(0.95, 0.94, 0.96), "faster"),
        (Estimate(1.05, 1.04, 1.06), "slower"),
        (Estimate(1.0, 0.995, 1.005), "equivalent"),
        (Estimate(1.006, 1.002, 1.0095), "equivalent"),
        (Estimate(1.008, 1.002, 1.02), "inconclusive"),
        (Estimate(1.05, 0.99, 1.11), "inconclusive"),
        (Estimate(0.97, 0.90, 1.001), "inconclusive"),
    ],
)
def test_verdict_needs_one_percent_and_an_interval_without_one(estimate, verdict):
    assert statistics.verdict(estimate) == verdict


def test_cpu_time_leads_only_when_contended_and_on_the_cpu():
    quiet = pair(0, 1.0, cpu_factor=1.0)
    rng = np.random.default_rng(0)
    a = synthetic(rng, factor=1.5, cpu_factor=1.05, switches=3)
    b = synthetic(rng, factor=1.0, cpu_factor=1.0, switches=3)
    assert statistics.compare(*quiet, seed=0, cpu_may_lead=True).led_by == "wall"
    assert statistics.compare(a, b, seed=0, cpu_may_lead=False).led_by == "wall"
    found = statistics.compare(a, b, seed=0, cpu_may_lead=True)
    assert (found.led_by, found.verdict) == ("cpu", "slower")
    assert found.ratio.value == pytest.approx(1.05, rel=0.005)
    assert found.wall.value == pytest.approx(1.5, rel=0.02)


def beside_a_neighbour(rng, factor, *, counted=True):
    """100 us a call, 138 us in spells of a neighbour on the same core, which begin and end within a visit or not."""
    made = []
    for _ in range(5):
        slow = rng.random((14, 130)) < rng.beta(0.5, 0.3, (14, 1))
        cpu = (1e5 * factor * np.exp(0.01 * rng.standard_normal(slow.shape)) * np.where(slow, 1.38, 1)).astype(np.int64)
        made.append(Samples(cpu, cpu.sum(axis=1), np.full(14, 10), cpu_ns=cpu if counted else None))
    return made


def test_change_is_found_beside_a_neighbour_who_slows_most_calls():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        a, b = beside_a_neighbour(rng, 1.05), beside_a_neighbour(rng, 1.0)
        found = statistics.compare(a, b, seed=seed, cpu_may_lead=True)
        assert found.led_by == "cpu"
        assert found.ratio.value == pytest.approx(1.05, abs=0.01)


def test_cpu_times_are_compared_by_the_same_measure_where_only_one_was_counted_by_call():
    rng = np.random.default_rng(0)
    a, b = beside_a_neighbour(rng, 1.0), beside_a_neighbour(rng, 1.0, counted=False)
    found = statistics.compare(a, b, seed=0, cpu_may_lead=True)
    assert found.cpu.value == pytest.approx(1.0, abs=0.1)  # the fastest of one over the mean of the other were 0.8


def test_contended_means_more_than_a_fifth_of_the_visits_were_disturbed():
    launch = synthetic(np.random.default_rng(0), launches=1)[0]
    switches = np.zeros(2 * ROUNDS, dtype=np.int64)
    switches[: 2 * ROUNDS // 5] = 1
    assert statistics.contended([Samples(launch.wall_ns, launch.visit_cpu_ns, switches)]) is False
    switches[: 2 * ROUNDS // 4] = 1
    assert statistics.contended([Samples(launch.wall_ns, launch.visit_cpu_ns, switches)]) is True


def test_one_switch_in_a_long_visit_is_no_contention():
    wall = np.full((20, 1), 400_000_000)
    assert statistics.contended([Samples(wall, wall[:, 0], np.full(20, 3))]) is False
    assert statistics.contended([Samples(wall, wall[:, 0], np.full(20, 30))]) is True


def test_machine_that_counts_no_switches_says_unknown():
    launch = synthetic(np.random.default_rng(0), launches=1, switches=-1)
    assert statistics.contended(launch) is None
    assert statistics.undisturbed(launch) is None


def test_undisturbed_samples_are_reported_only_when_enough_remain():
    wall = np.full((40, 10), 1_000_000)
    switches = np.zeros((40, 10), dtype=np.int64)
    switches[:, :5], wall[:, :5] = 1, 9_000_000
    one = Samples(wall, wall.sum(axis=1), switches.sum(axis=1), switches)
    assert statistics.undisturbed([one]) == {"n": 200, "p50_ms": 1.0}
    switches[:, :9] = 1
    assert statistics.undisturbed([one]) is None


def test_step_of_a_fifth_is_drift_wherever_it_happens():
    rng = np.random.default_rng(0)
    for at in (30, 60, 100):
        times = np.where(np.arange(120) < at, 1.0, 1.2) * np.exp(rng.normal(0, 0.02, 120))
        assert statistics.drift(times) > statistics.DRIFT_LIMIT
    assert abs(statistics.drift(np.exp(rng.normal(0, 0.02, 120)))) < 0.03
    assert statistics.drift(np.ones(5)) == 0.0


def test_large_measurements_are_summarised_in_seconds():
    rng = np.random.default_rng(0)
    launches = [
        Samples(rng.integers(1000, 2000, (250, 200)), np.full(250, 200_000), np.zeros(250, int)) for _ in range(5)
    ]
    start = time.process_time()
    statistics.percentiles(launches, seed=0)
    statistics.compare(launches, launches, seed=0, cpu_may_lead=True)
    assert time.process_time() - start < 5
