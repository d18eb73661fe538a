"""What `edgekd measure` prints: one line for each thing that was measured, and what an engineer must know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Row = Mapping[str, Any]


def lines(rows: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the rows that `measure_rows` made."""
    for row in rows["latency"]:
        yield from _latency(row)
    for pair in rows["comparisons"]:
        low, high = pair["ci95"]
        by = " by CPU time" if pair["led_by"] == "cpu" else ""
        yield f"{pair['a']} / {pair['b']}: {pair['ratio']:.3f} [{low:.3f}, {high:.3f}]  {pair['verdict']}{by}"
    for row in rows["throughput"]:
        low, high = row["ci95"]["throughput_per_s"]
        enough = "  saturated" if row["saturated"] else ""
        yield (
            f"{row['model']}, batch {row['batch']}, {row['streams']} at once: {row['throughput_per_s']:.4g} samples/s "
            f"[{low:.4g}, {high:.4g}], p50 {row['p50_ms']:.3f} ms{enough}"
        )
    yield from _load(rows["load"])
    if rows["sustain"] is not None:
        yield from _long_run(rows["sustain"])


def _latency(row: Row) -> Iterator[str]:
    low, high = row["ci95"]["p50_ms"]
    p99 = "" if row["p99_ms"] is None else f", p99 {row['p99_ms']:.3f} ms"
    yield f"{row['model']}: p50 {row['p50_ms']:.3f} ms [{low:.3f}, {high:.3f}]{p99}, n {row['n']}"
    facts = [f"load {row['load_ms']:.1f} ms", f"first call {row['first_ms']:.3f} ms"]
    if row["peak_rss_bytes"] is not None:
        facts.append(f"peak memory {row['peak_rss_bytes'] / 1e6:.0f} MB")
    if row["compute_ms"] is not None:
        facts.append(f"compute {row['compute_ms']:.3f} ms, in {row['h2d_ms']:.3f} ms, out {row['d2h_ms']:.3f} ms")
    if row["energy_mj_per_inference"] is not None:
        facts.append(f"{row['energy_mj_per_inference']:.3g} mJ ({row['energy_source']})")
    yield f"  {', '.join(facts)}"
    if row["few_launches"]:
        one = "1 launch: the interval is within it, and another one may differ by more"
        two = f"{row['launches']} launches: too few to know what launches differ by, so the interval is wide"
        yield f"  note: {one if row['launches'] == 1 else two}; 5 are usual (--launches)"
    notes = {
        "contended": "other processes disturbed more than a fifth of the samples",
        "throttled": "the machine slowed itself down",
        "leaks": "memory grew with the calls",
    }
    yield from (f"  note: {text}" for key, text in notes.items() if row[key])
    if row["steady"] is False:
        yield "  note: it never became steady, or did not stay so"


def _load(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        low, high = row["ci95"]["p99_ms"] or (None, None)
        p99 = "p99 unknown" if low is None else f"p99 {row['p99_ms']:.3f} ms [{low:.3f}, {high:.3f}]"
        kept = "" if row["kept_up"] else f"  the queue only grew ({row['achieved_per_s']:.4g}/s were answered)"
        yield f"{row['model']} at {row['rate_per_s']:.4g}/s: p50 {row['p50_ms']:.3f} ms, {p99}{kept}"
        if row.get("note"):
            yield f"  note: {row['note']}"
    for name, limit in dict.fromkeys((row["model"], row["limit_ms"]) for row in rows if row["limit_ms"] is not None):
        best = [row["rate_per_s"] for row in rows if row["model"] == name and row["highest"]]
        found = f"{best[0]:.4g}/s" if best else "none was found"
        yield f"{name}: highest rate with p99 within {limit:g} ms: {found}"


def _long_run(row: Row) -> Iterator[str]:
    seconds = row["t_s"][-1]
    long = f"{seconds / 60:.3g} min" if seconds >= 120 else f"{seconds:.3g} s"
    yield f"{row['model']}, {long}: p50 from {row['p50_ms'][0]:.3f} to {row['p50_ms'][-1]:.3f} ms"
    drift = "unknown" if row["drift"] is None else f"{row['drift']:+.1%}"
    beside = "" if row["reference_drift"] is None else f" (reference {row['reference_drift']:+.1%})"
    slowed = {True: "the machine slowed itself down", False: "not throttled", None: "throttling unknown"}
    grows = {True: "memory grows", False: "memory does not grow", None: "growth of memory unknown"}
    per_call = row["memory_growth_bytes_per_call"]
    of = "" if per_call is None else f" ({per_call:.3g} bytes a call)"
    yield f"  drift {drift}{beside}, {slowed[row['throttled']]}, {grows[row['leaks']]}{of}"
