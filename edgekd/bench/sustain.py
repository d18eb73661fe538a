"""One long run: a model and its reference visited in turn for minutes, and what became of both and of the machine.

Only medians per interval are kept. Python 3.8, standard library and numpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.bench import loop, machine

INTERVAL_S = 10.0
FEWEST_INTERVALS = 20

if TYPE_CHECKING:
    Run = Callable[[], None]


def sustain(
    runs: Sequence[Run],
    call_ns: Sequence[float],
    *,
    seconds: float,
    monitor: machine.Monitor,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Interleave for `seconds`, in intervals of 10 s (or a twentieth of the whole, if that is less).

    Returns:
        Lists of one entry per interval: `t_s` (its end), `calls` (of the first model, so far), `rss_bytes`,
        `frequency_mhz`, `temperature_c`; and for each model a list of `p50_ms`, `cpu_ms`, `disturbed_share` (-1: not
        known).
    """
    interval_s = min(INTERVAL_S, seconds / FEWEST_INTERVALS)
    found: dict[str, Any] = {"t_s": [], "calls": [], "rss_bytes": [], "frequency_mhz": [], "temperature_c": []}
    found.update({name: [[] for _ in runs] for name in ("p50_ms", "cpu_ms", "disturbed_share")})
    begin, calls = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds - interval_s / 2:
        records = loop.interleave(
            runs, call_ns, min_time_s=interval_s, max_time_s=interval_s, min_samples=1, monitor=monitor
        )
        for index, record in enumerate(records):
            wall = np.asarray(record.wall_ns)
            unknown = min(record.visit_switches) < 0
            found["p50_ms"][index].append(round(float(np.median(wall)) / 1e6, 6))
            found["cpu_ms"][index].append(round(sum(record.visit_cpu_ns) / wall.size / 1e6, 6))
            found["disturbed_share"][index].append(
                -1.0 if unknown else round(float(np.mean(loop.disturbed(wall, record.visit_switches))), 4)
            )
        calls += sum(len(walls) for walls in records[0].wall_ns)
        now = time.perf_counter() - begin
        found["t_s"].append(round(now, 3))
        found["calls"].append(calls)
        found["rss_bytes"].append(machine.rss_bytes())
        for key in ("frequency_mhz", "temperature_c"):
            found[key].append(monitor.notes[-1][key])
        progress(f"{min(now, seconds):.0f} of {seconds:.0f} s")
    return found
