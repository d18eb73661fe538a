"""Memory that grows, energy, heat and the clock of a machine, from files and counters whose content is known."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import fake_runtime
import numpy as np
import pytest

from edgekd.bench import energy, growth, loop, machine, nvml, sustain, under_load
from edgekd.bench.measure import Subject, measure_rows
from edgekd.bench.settings import BenchSettings

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
ABOUT = {"target": "t", "model": "m", "precision": "f32"}
CALLS = list(range(1000, 25_000, 1000))


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine of files: `root({"/sys/..": text})`."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        monkeypatch.setattr(machine, "ROOT", str(tmp_path))
        return str(tmp_path)

    return make


def noise(scale):
    return np.random.default_rng(0).integers(-scale, scale + 1, len(CALLS))


@pytest.mark.parametrize(
    ("rss", "leaks"),
    [
        ([80 * MIB + 1024 * n for n in CALLS], True),
        ([80 * MIB + 1024 * n + int(e) for n, e in zip(CALLS, noise(200_000), strict=True)], True),
        ([80 * MIB] * len(CALLS), False),
        ([80 * MIB + int(e) for e in noise(2 * MIB)], False),
        ([80 * MIB if n < 12_000 else 120 * MIB for n in CALLS], False),  # one step: a cache that was filled
        ([(80 + min(n / 1000, 5)) * MIB for n in CALLS], False),  # grows at first, and then no more
        ([80 * MIB + 16 * n for n in CALLS], False),  # a third of a MiB in all: no more than a kernel's error
    ],
    ids=["leak", "leak with noise", "steady", "noise", "step", "settles", "too little"],
)
def test_a_leak_is_told_from_noise_steps_and_settling(rss, leaks):
    found = growth.growth(CALLS, rss)
    assert found["leaks"] is leaks
    if leaks:
        assert found["memory_growth_bytes_per_call"] == pytest.approx(1024, rel=0.1)


@pytest.mark.parametrize("rss", [[None] * 24, [80 * MIB] * 9, []])
def test_growth_of_what_was_not_watched_is_unknown(rss):
    assert growth.growth(CALLS[: len(rss)], rss) == {"memory_growth_bytes_per_call": None, "leaks": None}


def test_watching_slow_calls_ends_early():
    calls, rss = growth.watch(lambda: time.sleep(0.02), 0.04)
    assert 1 <= len(calls) == len(rss) <= 6
    assert calls == sorted(calls)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(fake_runtime.__file__).parent)]))

    def run(*told, **more):
        brief = {"quick": True, "launches": 1, "min_time_s": 0.1, "min_samples": 20, "quiet_wait_s": 0.0}
        settings = BenchSettings(**{**brief, "profile": False, **more})
        subjects = []
        for index, one in enumerate(told):
            (tmp_path / f"{index}.json").write_text(json.dumps(one))
            name = tmp_path / f"{index}.json"
            subjects.append(Subject(f"m{index}", "here", "fake_runtime:FakeRuntime", "CPU", "f32", name))
        feeds = {"x": np.zeros((1, 3), np.float32)}
        return measure_rows(
            subjects, feeds, settings=settings, folder=tmp_path / "out", seed=1, progress=lambda line: None
        )

    return run


def test_an_engine_that_leaks_is_flagged_and_a_steady_one_is_not(bench):
    for _ in range(5):  # a machine that stalls while memory is watched leaves it unknown
        leaky, steady = bench({"sleep_ms": 0.5, "leak_kb": 64}, {"sleep_ms": 0.5}).latency
        if None not in (leaky["leaks"], steady["leaks"]):
            break
    assert (leaky["leaks"], steady["leaks"]) == (True, False)
    assert leaky["memory_growth_bytes_per_call"] > 32 * 1024
    assert abs(steady["memory_growth_bytes_per_call"]) < 8 * 1024


def test_a_long_run_of_a_build_is_kept_beside_its_row(bench, tmp_path):
    row = bench({"sleep_ms": 1}, {"sleep_ms": 1}, sustain_s=0.5).sustain
    assert (row["model"], row["reference"], row["target"]) == ("m0", "m1.f32@here", "here")
    assert len(row["t_s"]) == len(row["p50_ms"]) == len(row["reference_p50_ms"]) == len(row["rss_bytes"]) >= 1
    assert min(row["p50_ms"]) >= 1.0
    assert json.loads((tmp_path / "out" / "sustain.json").read_text()) == {"rows": [row]}


@pytest.mark.parametrize(("reference_ms", "throttled"), [(2.0, None), (2.5, True)])
def test_a_long_run_finds_an_injected_step_and_what_it_is_of(monkeypatch, reference_ms, throttled):
    clock = fake_runtime.Clock()
    for module in (loop, sustain):
        monkeypatch.setattr(module, "time", clock)
    runs, lines = [clock.call(1.0, 1.3, 12), clock.call(2.0, reference_ms, 12)], []
    monitor = SimpleNamespace(notes=[{"frequency_mhz": 1800.0, "temperature_c": 60.0}])
    monitor.note = monitor.note_if_due = lambda: None
    found = sustain.sustain(runs, [1e6, 2e6], seconds=24.0, monitor=monitor, progress=lines.append)
    n = len(found["t_s"])  # an interval ends with a whole round: they are a little longer than a twentieth
    assert len(lines) == n
    assert 18 <= n <= 20
    told = {**found, **growth.growth(found["calls"], found["rss_bytes"]), "throttled": None}
    row = under_load.sustain_row(ABOUT, told, reference="r", on_cpu=True)
    assert (row["p50_ms"][0], row["p50_ms"][-1], row["reference_p50_ms"][-1]) == (1.0, 1.3, reference_ms)
    assert row["drift"] == pytest.approx(0.3)
    assert row["reference_drift"] == pytest.approx(reference_ms / 2 - 1)
    assert row["throttled"] is throttled
    assert (row["frequency_mhz"], row["temperature_c"]) == ([1800.0] * n, [60.0] * n)
    assert row["calls"] == sorted(row["calls"])


def series(*p50_ms, cpu_ms=None, disturbed=0.0, throttled=None):
    n = len(p50_ms[0])
    return {
        "t_s": [10.0 * (i + 1) for i in range(n)],
        "calls": [1000 * (i + 1) for i in range(n)],
        "p50_ms": list(p50_ms),
        "cpu_ms": list(cpu_ms or p50_ms),
        "disturbed_share": [[disturbed] * n for _ in p50_ms],
        "frequency_mhz": [None] * n,
        "temperature_c": [51.0] * n,
        "rss_bytes": [MIB] * n,
        "memory_growth_bytes_per_call": 0.0,
        "leaks": False,
        "throttled": throttled,
    }


STEP, FLAT = [1.0] * 12 + [1.3] * 12, [1.0] * 24


@pytest.mark.parametrize(
    ("result", "drift", "throttled"),
    [
        (series(STEP, STEP), 0.3, True),  # the reference slowed down with it
        (series(STEP, FLAT), 0.3, None),
        (series(STEP, FLAT, throttled=False), 0.3, False),
        (series(FLAT, FLAT, throttled=True), 0.0, True),  # a counter said so
        (series(STEP), 0.3, None),
        (series(STEP, STEP, cpu_ms=[FLAT, FLAT], disturbed=0.9), 0.0, None),  # a neighbour, not heat
        (series(STEP[:8], STEP[:8]), None, None),  # too short to tell
    ],
)
def test_drift_is_throttling_only_where_the_reference_drifts_too(result, drift, throttled):
    reference = "other" if len(result["p50_ms"]) > 1 else None
    row = under_load.sustain_row(ABOUT, result, reference=reference, on_cpu=True)
    assert row["drift"] == (drift if drift is None else pytest.approx(drift))
    assert row["throttled"] is throttled
    assert (row["reference_p50_ms"] is None) == (reference is None)


def test_switches_that_nobody_counts_leave_contention_unknown():
    row = under_load.sustain_row(ABOUT, series(FLAT, FLAT, disturbed=-1.0), reference="r", on_cpu=True)
    assert row["contended"] is None


RAPL = "/sys/class/powercap/intel-rapl:0"


def package(uj, *, zone=RAPL, name="package-0", around=1_000_000):
    return {f"{zone}/name": name, f"{zone}/energy_uj": uj, f"{zone}/max_energy_range_uj": around}


def test_packages_are_added_up_and_a_counter_that_wrapped_goes_on(root):
    second = "/sys/class/powercap/intel-rapl:1"
    core = "/sys/class/powercap/intel-rapl:0:0"
    files = {**package(900_000), **package(0, zone=second, name="package-1"), **package(5, zone=core, name="core")}
    meter = energy.find_meter(on_gpu=False, root=root(files))
    assert meter.source == "rapl"
    meter.begin()
    root({f"{RAPL}/energy_uj": 100_000, f"{second}/energy_uj": 300_000, f"{core}/energy_uj": 900_000})
    assert meter.joules() == pytest.approx(0.2 + 0.3)


def test_a_jetsons_module_rail_is_taken_or_all_rails_together(root, tmp_path):
    chip = "/sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    files = {
        f"{chip}/in1_label": "VDD_IN", f"{chip}/in1_input": 5000, f"{chip}/curr1_input": 2000,
        f"{chip}/in2_label": "VDD_CPU_GPU_CV", f"{chip}/in2_input": 5000, f"{chip}/curr2_input": 800,
        f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/in7_input": 9,
        "/sys/class/power_supply/BAT0/power_now": 40_000_000,
    }  # fmt: skip
    for gpu in (False, True):
        meter = energy.find_meter(on_gpu=gpu, root=root(files))
        assert (meter.source, meter.read_w()) == ("ina3221 VDD_IN", 10.0)
    (tmp_path / chip.lstrip("/") / "in1_label").write_text("VDD_GPU_SOC\n")
    meter = energy.find_meter(on_gpu=False, root=str(tmp_path))
    assert (meter.source, meter.read_w()) == ("ina3221 sum of rails", 14.0)


def test_an_older_jetson_tells_milliwatts(root):
    chip = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    meter = energy.find_meter(
        on_gpu=False, root=root({f"{chip}/rail_name_0": "POM_5V_IN", f"{chip}/in_power0_input": 4321})
    )
    assert (meter.source, meter.read_w()) == ("ina3221 POM_5V_IN", 4.321)


def test_power_is_summed_up_over_time():
    clock, watts = iter([0.0, 1.0, 3.0]), iter([10.0, 20.0, 20.0])
    meter = energy.Power(lambda: next(watts), "test", clock=lambda: next(clock))
    meter.begin()
    meter.sample()
    assert meter.joules() == pytest.approx(15.0 + 40.0)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/sys/class/power_supply/BAT0/power_now": 40_000_000},
        {f"{RAPL}/name": "package-0", f"{RAPL}/max_energy_range_uj": 5},  # energy_uj is for root alone
        {f"{RAPL}/name": "psys", f"{RAPL}/energy_uj": 1, f"{RAPL}/max_energy_range_uj": 5},
    ],
)
def test_a_machine_without_a_counter_has_no_energy(root, files):
    assert energy.find_meter(on_gpu=False, root=root(files)) is None


def test_energy_of_a_call_with_and_without_what_the_idle_machine_takes():
    class Meter:
        """One joule for every time that it is asked, whatever happens."""

        source = "test"

        def begin(self):
            self.asked = 0

        def sample(self):
            pass

        def joules(self):
            return 2.0

    counted = itertools.count(1)
    run = lambda: time.sleep(0.01) or next(counted)  # noqa: E731
    found = energy.per_inference(run, Meter(), idle_s=0.02, seconds=0.05)
    calls = next(counted) - 1
    assert found["energy_calls"] == calls >= 1
    assert found["energy_mj_per_inference"] == pytest.approx(2000 / calls)
    assert 0 < found["idle_power_w"] <= 2 / 0.02
    assert found["energy_above_idle_mj"] < found["energy_mj_per_inference"]


def test_energy_reaches_the_row_where_the_machine_counts_it():
    from edgekd.bench.rows import _alone

    told = {"energy_mj_per_inference": 1.23456789, "energy_above_idle_mj": 1.0, "idle_power_w": 5.0}
    memory = {"peak_rss_bytes": 1, "rss_before_load_bytes": 1}
    row = _alone({**memory, "energy": {**told, "energy_source": "rapl", "energy_calls": 7}})
    assert (row["energy_mj_per_inference"], row["energy_source"]) == (1.234568, "rapl")
    row = _alone({**memory, "device_times": {"compute_ms": 1.0, "graph_ms": None, "h2d_ms": 0.5, "d2h_ms": 0.1}})
    assert (row["energy_mj_per_inference"], row["compute_ms"], row["graph_ms"]) == (None, 1.0, None)


class Nvml:
    """The library behind nvidia-smi: what is in `values` it tells, anything else it refuses."""

    def __init__(self, there=True, **values):
        self.there, self.values = there, values

    def nvmlInit_v2(self):
        return 0 if self.there else 9

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        return 0

    def __getattr__(self, name):
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def ask(handle, *arguments):
            if name not in self.values:
                return 3
            arguments[-1]._obj.value = self.values[name]
            return 0

        return ask


def test_a_gpu_tells_clock_heat_power_and_whether_it_is_held_down(monkeypatch):
    gpu = nvml.opened(
        Nvml(
            nvmlDeviceGetClockInfo=1410,
            nvmlDeviceGetTemperature=63,
            nvmlDeviceGetPowerUsage=250_500,
            nvmlDeviceGetTotalEnergyConsumption=9_000,
            nvmlDeviceGetCurrentClocksThrottleReasons=0x40,
        )
    )
    assert (gpu.clock_mhz(), gpu.temperature_c(), gpu.power_w(), gpu.energy_mj()) == (1410, 63, 250.5, 9000)
    assert gpu.slowed() is True
    monkeypatch.setattr(nvml, "first_gpu", lambda: gpu)
    meter = energy.find_meter(on_gpu=True, root="/nowhere")
    meter.begin()
    gpu._library.values["nvmlDeviceGetTotalEnergyConsumption"] = 12_000
    assert (meter.source, meter.joules()) == ("nvml", 3.0)
    monitor = machine.Monitor()
    assert monitor.notes[0]["gpu_frequency_mhz"] == 1410
    assert monitor.throttled() is True


def test_what_a_gpu_does_not_tell_is_unknown(monkeypatch):
    silent = nvml.opened(Nvml())
    assert [silent.clock_mhz(), silent.temperature_c(), silent.power_w(), silent.energy_mj(), silent.slowed()] == [
        None
    ] * 5
    assert nvml.opened(Nvml(there=False)) is None
    for gpu in (None, silent):
        monkeypatch.setattr(nvml, "first_gpu", lambda gpu=gpu: gpu)
        assert energy.find_meter(on_gpu=True, root="/nowhere") is None
    old = nvml.opened(Nvml(nvmlDeviceGetPowerUsage=5000))  # before Volta there is power alone
    monkeypatch.setattr(nvml, "first_gpu", lambda: old)
    assert energy.find_meter(on_gpu=True, root="/nowhere").read_w() == 5.0


def test_heat_and_clock_come_from_the_files_that_a_machine_has(root):
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    root(
        {
            "/sys/class/thermal/thermal_zone0/type": "CPU-therm",
            "/sys/class/thermal/thermal_zone0/temp": 47_500,
            "/sys/class/thermal/thermal_zone1/type": "PMIC-Die",  # of a Jetson: it always says 100
            "/sys/class/thermal/thermal_zone1/temp": 100_000,
            "/sys/class/hwmon/hwmon0/name": "k10temp",
            "/sys/class/hwmon/hwmon0/temp1_input": 61_000,
            "/sys/class/hwmon/hwmon1/name": "nvme",
            "/sys/class/hwmon/hwmon1/temp1_input": 90_000,
            f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": 1_800_000,
            "/sys/devices/platform/soc/soc:firmware/get_throttled": "50004",
            "/proc/pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=1.00 total=1",
            **package(500_000),
        }
    )
    monitor = machine.Monitor()
    note = monitor.notes[0]
    assert (note["temperature_c"], note["frequency_mhz"], note["pressure_percent"]) == (61.0, 1800.0, 12.5)
    assert (note["throttled_now"], monitor.throttled()) == (True, True)
    root({f"{RAPL}/energy_uj": 900_000})
    time.sleep(0.01)
    monitor.note()
    assert 0 < monitor.notes[1]["power_w"] <= 0.4 / 0.01
    assert monitor.mean("temperature_c") == 61.0


def test_an_empty_machine_tells_nothing_and_never_zero(root, monkeypatch):
    monkeypatch.setattr(nvml, "first_gpu", lambda: None)
    root({})
    monitor = machine.Monitor()
    monitor.note()
    assert {key for key, value in monitor.notes[1].items() if value is not None} == {"t_s"}
    assert monitor.throttled() is None
    assert monitor.mean("steal_share") is None
    assert machine.rss_bytes() is None
