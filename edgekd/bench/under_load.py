"""Throughput, latency under a load and the long run, as the host sees them: jobs for the agent, rows of report.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.bench import statistics
from edgekd.bench.load import ENOUGH
from edgekd.bench.settings import FEWEST_REQUESTS, BenchSettings

Ask = Callable[..., dict[str, Any]]
"""Runs a job: (job, title, leaves=files that it leaves, more_s=seconds beyond the time limit) -> the agent's result."""
Arrays = Mapping[str, NDArray[Any]]

SLICES = 20
BLOCKS = 50


def throughput(
    ask: Ask, about: Mapping[str, Any], model: Mapping[str, Any], settings: BenchSettings, samples: Path, where: str
) -> list[dict[str, Any]]:
    """Rows of `throughput` of one build, one for each number of rows and streams; `about` names the build."""
    assert settings.throughput is not None
    effort, options = settings.effort(), settings.throughput
    job = {
        "mode": "throughput",
        "models": [model],
        "batches": None if options.batches == "auto" else list(options.batches),
        "streams": None if options.streams == "auto" else list(options.streams),
        "seconds": effort.throughput_s,
        "min_calls": statistics.SAMPLES_BEYOND * 2,
        "max_s": 10 * effort.throughput_s,
        "samples": where,
    }
    result = ask(job, f"throughput of {model['name']}", leaves={samples.name: samples})
    with np.load(samples, allow_pickle=False) as stored:
        return [
            throughput_row(about, one, stored[f"{i}/start_ns"], stored[f"{i}/end_ns"])
            for i, one in enumerate(result["loops"])
        ]


def throughput_row(
    about: Mapping[str, Any], loop: Mapping[str, Any], start_ns: NDArray[np.int64], end_ns: NDArray[np.int64]
) -> dict[str, Any]:
    """A row of `throughput` of one closed loop: calls (n,) from `start_ns` to `end_ns`, ordered by their ends."""
    batch, seed = loop["batch"], 0
    edges = np.linspace(start_ns.min(), end_ns.max(), SLICES + 1)
    # How many calls were done at each edge; one that is under way counts by its part.
    shares = (edges[:, None] - start_ns) / np.maximum(1, end_ns - start_ns)
    done = np.clip(shares, 0, 1).sum(axis=1)
    per_slice = np.diff(done) / (edges[1] - edges[0]) * 1e9 * batch
    drawn = np.random.default_rng(seed).choice(per_slice, (statistics.DRAWS, SLICES)).mean(axis=1)
    seconds = (edges[-1] - edges[0]) / 1e9
    found = _percentiles(end_ns - start_ns, seed)
    return {
        **about,
        "batch": batch,
        "streams": loop["streams"],
        "scenario": "Offline",
        "n": len(end_ns),
        "seconds": round(float(seconds), 3),
        "throughput_per_s": round(float(len(end_ns) * batch / seconds), 3),
        "ci95": {"throughput_per_s": [round(float(end), 3) for end in np.quantile(drawn, [0.025, 0.975])]},
        "p50_ms": _value(found["p50"]),
        "p99_ms": _value(found["p99"]),
        "saturated": loop["saturated"],
    }


def load(
    ask: Ask,
    about: Mapping[str, Any],
    model: Mapping[str, Any],
    settings: BenchSettings,
    samples: Path,
    where: str,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of `load` of one build, one for each rate that was tried, the lowest first."""
    assert settings.load is not None
    effort, options = settings.effort(), settings.load
    job = {
        "mode": "rates",
        "models": [model],
        "rates": list(options.rates),
        "limit_ms": options.p99_limit_ms,
        "streams": options.streams,
        "requests": effort.requests,
        "fewest": FEWEST_REQUESTS,
        "max_s": effort.request_max_s,
        "search_s": effort.search_s,
        "seed": seed,
        "samples": where,
    }
    schedules_s = sum(max(effort.request_max_s, FEWEST_REQUESTS / rate) for rate in options.rates)
    more_s = effort.search_s + schedules_s + effort.request_max_s * (2 + len(options.rates))
    result = ask(job, f"load on {model['name']}", leaves={samples.name: samples}, more_s=more_s)
    about = {**about, "batch": settings.batch, "streams": options.streams}
    with np.load(samples, allow_pickle=False) as stored:
        rows = [
            load_row(about, one, stored[f"{i}/latency_ns"], limit_ms=options.p99_limit_ms, seed=seed)
            for i, one in enumerate(result["loops"])
        ]
    rows.sort(key=lambda row: float(row["rate_per_s"]))
    met = [row for row in rows if row["met"]]
    if met:
        met[-1]["highest"] = True
    return rows


def load_row(
    about: Mapping[str, Any],
    loop: Mapping[str, Any],
    latency_ns: NDArray[np.int64],
    *,
    limit_ms: float | None,
    seed: int,
) -> dict[str, Any]:
    """A row of `load` of one open loop: the latencies (n,) of its requests in the order in which they were due.

    The limit is met where the whole interval of p99 lies below it, and not where it all lies above or the queue only
    grew; between these, or without enough requests, nobody knows.
    """
    found = _percentiles(latency_ns, seed)
    p99 = found["p99"]
    met = None
    if limit_ms is not None and not loop["kept_up"]:
        met = False
    elif limit_ms is not None and p99 is not None:
        met = True if p99.high <= limit_ms else (False if p99.low > limit_ms else None)
    open_ = limit_ms is not None and met is None
    note = _unknown(p99, len(latency_ns), float(loop["rate_per_s"])) if open_ else None
    return {
        **about,
        "scenario": "Server",
        "rate_per_s": round(float(loop["rate_per_s"]), 4),
        "achieved_per_s": round(float(loop["achieved_per_s"]), 4),
        "n": len(latency_ns),
        "p50_ms": _value(found["p50"]),
        "p90_ms": _value(found["p90"]),
        "p99_ms": _value(p99),
        "ci95": {"p99_ms": None if p99 is None else [round(p99.low, 6), round(p99.high, 6)]},
        "kept_up": loop["kept_up"],
        "limit_ms": limit_ms,
        "met": met,
        "highest": False,
        "note": note,
    }


def _unknown(p99: statistics.Estimate | None, n: int, rate_per_s: float) -> str:
    """Why nobody knows whether the limit is met."""
    if p99 is not None:
        return "the limit lies within the interval of p99"
    return f"{n} requests are too few for p99: {ENOUGH} take {ENOUGH / rate_per_s:.0f} s at this rate"


def sustained(
    ask: Ask,
    about: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    settings: BenchSettings,
    *,
    on_cpu: bool,
) -> dict[str, Any]:
    """The row of one long run of the first of the models, with the second, its reference, if there is one."""
    effort = settings.effort()
    job = {
        "mode": "sustain",
        "models": list(models),
        "seconds": settings.sustain_s,
        "warm_window_s": effort.warm_window_s,
        "warm_min_s": effort.warm_min_s,
        "warm_max_s": effort.warm_max_s,
    }
    result = ask(job, f"long run of {models[0]['name']}", more_s=settings.sustain_s)
    return sustain_row(about, result, reference=models[1]["name"] if len(models) > 1 else None, on_cpu=on_cpu)


def sustain_row(
    about: Mapping[str, Any], result: Mapping[str, Any], *, reference: str | None, on_cpu: bool
) -> dict[str, Any]:
    """What a long run tells. Drift is by CPU time where the run was contended, as for latency.

    `throttled`: by the machine's counters, or because the reference became over 10% slower together with the model.
    """
    shares = result["disturbed_share"][0]
    contended = None if -1.0 in shares else float(np.mean(shares)) > statistics.DISTURBED_SHARE
    series = result["cpu_ms" if contended and on_cpu else "p50_ms"]
    known = len(result["t_s"]) >= statistics.FEWEST_BLOCKS
    drifts = [statistics.drift(np.asarray(one, dtype=np.float64)) for one in series]
    together = len(drifts) > 1 and min(drifts) > statistics.DRIFT_LIMIT
    return {
        **about,
        "reference": reference,
        "t_s": result["t_s"],
        "p50_ms": result["p50_ms"][0],
        "reference_p50_ms": result["p50_ms"][1] if reference else None,
        "frequency_mhz": result["frequency_mhz"],
        "temperature_c": result["temperature_c"],
        "rss_bytes": result["rss_bytes"],
        "calls": result["calls"],
        "drift": round(drifts[0], 4) if known else None,
        "reference_drift": round(drifts[1], 4) if known and reference else None,
        "contended": contended,
        "throttled": True if together else result["throttled"],
        "memory_growth_bytes_per_call": result["memory_growth_bytes_per_call"],
        "leaks": result["leaks"],
    }


def _percentiles(times_ns: NDArray[np.int64], seed: int) -> dict[str, statistics.Estimate | None]:
    """Percentiles with intervals over blocks of neighbours: who waits in one queue waits together."""
    n = len(times_ns)
    size = max(1, n // BLOCKS)
    whole = times_ns[: n // size * size].reshape(-1, size)
    zeros = np.zeros(len(whole), dtype=np.int64)
    found = statistics.percentiles([statistics.Samples(whole, zeros, zeros)], seed=seed)
    ordered = np.sort(times_ns)
    for name, one in found.items():
        if one is not None:  # the value itself is of all samples, those too that fill no block
            value = float(ordered[-(-n * statistics.PERCENTILES_PERMILLE[name] // 1000) - 1]) / 1e6
            found[name] = statistics.Estimate(value, min(one.low, value), max(one.high, value))
    return found


def _value(estimate: statistics.Estimate | None) -> float | None:
    return None if estimate is None else round(estimate.value, 6)
