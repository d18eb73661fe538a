"""Do intervals and verdicts hold what they say? Invented measurements, whose truth is known, with kinds of noise.

A measurement is that of the quick settings: 5 launches of 2 s over two networks of 100 us, so 25 rounds of two visits
of 200 calls each; fewer rounds where others take most of the core, as CPU time then leads. Noise has levels: the
machine's mood, which changes from round to round and drifts, shared by both networks; what a launch gives a network
for its whole life (memory layout); what a visit finds (caches); and the single call, with a tail of interrupted calls
to one side. The contended machine is modelled after what two busy cores of a virtual machine showed at a load of 11:
calls of 111 us that took 140 to 160 us in spells, and 3 to 7 rounds in 2 s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from latency_figures import share
from numpy.typing import NDArray

from edgekd.bench import statistics
from edgekd.bench.statistics import Samples

LAUNCHES, CALLS = 5, 200
CALL_NS = 100_000.0
FACTORS = (1.0, 1.02, 1.05)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the logarithm of a call's time, by level; `interrupted` is a share of calls.

    With `neighbour` calls are slower by that factor, about, while another program runs on the same core: in spells,
    so that a visit is in one for most of its time or for none, and every visit loses its core at least once.
    """

    launch: float
    visit: float = 0.01
    call: float = 0.02
    mood: float = 0.05
    mood_of_launch: float = 0.02
    interrupted: float = 0.02
    neighbour: float = 1.0
    rounds: int = 25


KINDS = {
    "quiet machine": Noise(launch=0.002, visit=0.003, call=0.01, mood=0.01, mood_of_launch=0.005, interrupted=0.005),
    "shared machine": Noise(launch=0.005),
    "bad machine": Noise(launch=0.01, visit=0.05, call=0.1, mood=0.2, mood_of_launch=0.05, interrupted=0.1),
    "contended machine": Noise(launch=0.002, visit=0.003, call=0.01, mood=0.01, neighbour=1.38, rounds=7),
}


def moods(noise: Noise, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """The machine's mood in each round of each launch: half of it new, half of it kept from the round before."""
    found = []
    for _ in range(LAUNCHES):
        mood = rng.normal(0, noise.mood, noise.rounds)
        for at in range(1, noise.rounds):
            mood[at] = 0.7 * mood[at - 1] + 0.7 * mood[at]
        found.append(mood + rng.normal(0, noise.mood_of_launch))
    return found


def measured(
    noise: Noise, factor: float, mood: Sequence[NDArray[np.float64]], rng: np.random.Generator
) -> list[Samples]:
    """A network of `factor` times 100 us, in the given moods."""
    launches = []
    for of_launch in mood:
        shape = (2 * noise.rounds, CALLS)
        log = np.repeat(of_launch, 2)[:, None] + rng.normal(0, noise.launch) + rng.normal(0, noise.visit, (shape[0], 1))
        log = log + noise.call * np.clip(rng.standard_t(3, shape), -8, 8)
        tail = np.where(rng.random(shape) < noise.interrupted, rng.pareto(1.5, shape), 0.0)
        if noise.neighbour > 1:
            slow = rng.random(shape) < rng.beta(0.5, 0.3, (shape[0], 1))
            log = log + slow * (math.log(noise.neighbour) + rng.normal(0, 0.08, (shape[0], 1)))
        cpu = (CALL_NS * factor * np.exp(log)).astype(np.int64)
        wall = (cpu * (1 + tail)).astype(np.int64)
        switches = np.full(shape[0], 10 * int(noise.neighbour > 1))
        launches.append(Samples(wall, cpu.sum(axis=1), switches, cpu_ns=cpu))
    return launches


def true_p50_ms(noise: Noise, kind: int) -> float:
    """The median over all launches that there could be."""
    rng = np.random.default_rng([kind, 1])
    parts = [measured(noise, 1.0, moods(noise, rng), rng) for _ in range(400)]
    some = [launch.wall_ns.reshape(-1)[::20] for part in parts for launch in part]
    return float(np.median(np.concatenate(some))) / 1e6


def simulate(name: str, experiments: int) -> dict[str, Any]:
    """Coverage of both intervals and the verdicts at each true ratio."""
    kind, noise = list(KINDS).index(name), KINDS[name]
    truth = true_p50_ms(noise, kind)
    covered_p50, rows = 0, []
    for factor in FACTORS:
        covered, verdicts, ratios = 0, Counter[str](), []
        for number in range(experiments):
            rng = np.random.default_rng([kind, 2, number, round(100 * factor)])
            mood = moods(noise, rng)
            a, b = measured(noise, factor, mood, rng), measured(noise, 1.0, mood, rng)
            found = statistics.compare(a, b, seed=number, cpu_may_lead=True)
            covered += found.ratio.low <= factor <= found.ratio.high
            verdicts[found.verdict] += 1
            ratios.append(math.log(found.ratio.value / factor))
            if factor == 1.0:
                p50 = statistics.percentiles(b, seed=number)["p50"]
                assert p50 is not None
                covered_p50 += p50.low <= truth <= p50.high
        rows.append(
            {
                "ratio": factor,
                "covered": share(covered, experiments),
                "verdicts": dict(verdicts),
                "error_sd": round(float(np.std(ratios)), 5),
            }
        )
    return {
        "experiments": experiments,
        "noise": vars(noise),
        "p50_covered": share(covered_p50, experiments),
        "ratios": rows,
    }
