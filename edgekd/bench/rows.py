"""Rows of report.json made from what the launches recorded: one per model, one per pair of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import statistics


@dataclass
class Measured:
    """Everything that was recorded of one model, launch by launch; `memory` is the answer of its process alone."""

    name: str
    device: str
    memory: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    arrays: list[dict[str, NDArray[np.int64]]] = field(default_factory=list)
    launches: list[statistics.Samples] = field(default_factory=list)

    def add(self, result: dict[str, Any], arrays: dict[str, NDArray[np.int64]]) -> None:
        """Add one launch: the agent's result and this model's arrays of it."""
        self.results.append(result)
        self.arrays.append(arrays)
        switches = arrays.get("switches")
        counted = switches is not None and not np.any(switches < 0)
        samples = statistics.Samples(
            wall_ns=arrays["wall_ns"],
            visit_cpu_ns=arrays["visit_cpu_ns"],
            visit_switches=arrays["visit_switches"],
            switches=switches if counted else None,
            cpu_ns=arrays.get("cpu_ns"),
        )
        self.launches.append(samples)

    @property
    def on_cpu(self) -> bool:
        """Whether the work is done by this process's own cores, so that its CPU time means something."""
        return self.device.upper().startswith("CPU")

    def facts(self, key: str) -> list[Any]:
        """One fact of this model from every launch."""
        return [result["models"][self.name][key] for result in self.results]

    def drifts(self) -> list[float]:
        """The largest lasting step within each launch, by the clock that leads."""
        by_cpu = self.on_cpu and statistics.contended(self.launches)
        return [statistics.drift(s.round_cpu_ns() if by_cpu else s.round_wall_ns()) for s in self.launches]


def latency_row(
    about: Mapping[str, Any], one: Measured, everyone: Sequence[Measured], *, seed: int, samples_path: str
) -> dict[str, Any]:
    """A row of `latency`: `about` names the build and the conditions; `everyone` was interleaved with it."""
    found = statistics.percentiles(one.launches, seed=seed)
    n = sum(launch.wall_ns.size for launch in one.launches)
    mean = statistics.mean_ms(one.launches, seed=seed)
    drift, stable = max(one.drifts(), key=abs), all(one.facts("warm_stable"))
    quiet = [result["quiet"]["reached"] for result in one.results]
    return {
        **about,
        "scenario": "SingleStream" if about["batch"] == 1 else "MultiStream",
        "n": n,
        "launches": len(one.launches),
        "few_launches": len(one.launches) < statistics.FEWEST_LAUNCHES,
        **{f"{name}_ms": None if estimate is None else _round(estimate.value) for name, estimate in found.items()},
        "ci95": {
            **{f"{name}_ms": _interval(estimate) for name, estimate in found.items() if estimate is not None},
            "throughput_per_s": [round(about["batch"] * 1e3 / end, 3) for end in (mean.high, mean.low)],
        },
        "min_ms": _round(min(int(launch.wall_ns.min()) for launch in one.launches) / 1e6),
        "mean_ms": _round(mean.value),
        "cpu_p50_ms": _round(statistics.cpu_p50_ms(one.launches)),
        "undisturbed": statistics.undisturbed(one.launches),
        "throughput_per_s": round(about["batch"] * 1e3 / mean.value, 3),
        # The first model of an engine in a launch pays for the import: with the order random, that is the maximum.
        "import_ms": _round(max(one.facts("import_ms"))),
        "load_ms": _round(median(one.facts("load_ms"))),
        "first_ms": _round(median(runs[0] for runs in one.facts("runs_1_to_10_ms"))),
        "runs_1_to_10_ms": [_round(median(runs)) for runs in zip(*one.facts("runs_1_to_10_ms"), strict=True)],
        "read_ms": _middle(one.facts("read_ms")),
        "compile_ms": _middle(one.facts("compile_ms")),
        **_alone(one.memory),
        "steady": stable and abs(drift) <= statistics.DRIFT_LIMIT,
        "warm_stable": stable,
        "drift": round(drift, 4),
        "quiet": None if None in quiet else all(quiet),
        "steal_share": _middle([result["steal_share"] for result in one.results]),
        "pressure_percent": _middle([result["pressure_percent"] for result in one.results]),
        "contended": statistics.contended(one.launches),
        "throttled": _throttled(one.results, everyone),
        "power_mode": one.results[0]["machine"]["power_mode"],
        "engine": one.facts("engine")[0],
        "samples_path": samples_path,
    }


def comparison_row(a: Measured, b: Measured, *, seed: int) -> dict[str, Any]:
    """A row of `comparisons`: time of `a` over time of `b`, by the clock named in `led_by`; the verdict is on `a`."""
    found = statistics.compare(a.launches, b.launches, seed=seed, cpu_may_lead=a.on_cpu and b.on_cpu)
    return {
        "a": a.name,
        "b": b.name,
        "measure": "latency",
        "ratio": _round(found.ratio.value),
        "ci95": _interval(found.ratio),
        "verdict": found.verdict,
        "led_by": found.led_by,
        "wall_ratio": _round(found.wall.value),
        "wall_ci95": _interval(found.wall),
        "cpu_ratio": None if found.cpu is None else _round(found.cpu.value),
        "cpu_ci95": None if found.cpu is None else _interval(found.cpu),
    }


def _throttled(results: Sequence[Mapping[str, Any]], everyone: Sequence[Measured]) -> bool | None:
    """By the machine's own counters, or because all models of a launch became over 10% slower together.

    One model alone has none beside it that could tell its own slowing down from the machine's.
    """
    drifts = zip(*(one.drifts() for one in everyone), strict=True)
    if len(everyone) > 1 and any(min(together) > statistics.DRIFT_LIMIT for together in drifts):
        return True
    said = [result["throttled"] for result in results]
    return True if True in said else (None if None in said else False)


def _alone(memory: Mapping[str, Any]) -> dict[str, Any]:
    """What a process with this model alone told; growth, energy and the times of a device's clock may be unknown."""
    device, energy = memory.get("device_times") or {}, memory.get("energy") or {}
    times = {key: device.get(key) for key in ("compute_ms", "graph_ms", "h2d_ms", "d2h_ms")}
    spent = {key: energy.get(key) for key in ("energy_mj_per_inference", "energy_above_idle_mj", "idle_power_w")}
    return {
        "peak_rss_bytes": memory["peak_rss_bytes"],
        "rss_before_load_bytes": memory["rss_before_load_bytes"],
        "rss_bytes": memory.get("rss_bytes"),
        "engine_memory_bytes": memory.get("engine_memory_bytes"),
        "memory_growth_bytes_per_call": memory.get("memory_growth_bytes_per_call"),
        "leaks": memory.get("leaks"),
        **times,
        **{key: None if value is None else _round(value) for key, value in spent.items()},
        "energy_source": energy.get("energy_source"),
    }


def _middle(values: Sequence[float | None]) -> float | None:
    """The median of the launches; None where one of them does not know."""
    known = [value for value in values if value is not None]
    return _round(median(known)) if known and len(known) == len(values) else None


def _interval(estimate: statistics.Estimate) -> list[float]:
    return [_round(estimate.low), _round(estimate.high)]


def _round(value: float) -> float:
    return round(value, 6)
