"""Options of a latency measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekd.config.durations import Milliseconds, Seconds
from edgekd.config.settings import Settings

FEWEST_REQUESTS = 20


@dataclass(frozen=True)
class Effort:
    """How long everything of a measurement takes: the settings with every default resolved."""

    min_time_s: float
    max_time_s: float
    min_samples: int
    quiet_wait_s: float
    warm_window_s: float
    warm_min_s: float
    warm_max_s: float
    profile_runs: int
    profile_max_s: float
    leak_s: float
    energy_s: float
    throughput_s: float
    requests: int
    request_max_s: float
    search_s: float


class ThroughputSettings(Settings):
    """Samples per second with several calls at once, in closed loops: MLPerf's Offline scenario."""

    batches: Literal["auto"] | tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    """Rows of input in one call; each is tried with all numbers of streams. `auto` doubles from 1 to 64 until that
    brings less than 3%."""

    streams: Literal["auto"] | tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(default="auto", min_length=1)
    """Calls that are under way at once, each with the threads of `bench.threads` (ONNX Runtime: all share them). `auto`
    doubles from 1 to 64 until that brings less than 3%."""


class LoadSettings(Settings):
    """Latency of requests that arrive by chance (Poisson) and count from when they arrive: MLPerf's Server scenario."""

    rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Requests per second to measure at."""

    p99_limit_ms: Milliseconds | None = Field(default=None, gt=0)
    """Also look for the highest rate whose 99th percentile stays below this, e.g. "5ms" or 5."""

    streams: int = Field(default=1, ge=1, le=256)
    """Requests that are served at once; the others wait."""

    @model_validator(mode="after")
    def _ask_for_something(self) -> LoadSettings:
        if not self.rates and self.p99_limit_ms is None:
            raise ValueError("it asks for nothing | give `rates`, `p99_limit_ms`, or both")
        return self


class BenchSettings(Settings):
    """Latency of every build of a target, interleaved in one process, over several launches of that process."""

    quick: bool = False
    """A fifth of the measuring time, for a first look and for CI; the report says that it was quick."""

    launches: int = Field(default=5, ge=1)
    """How many processes measure, one after the other. Memory layout differs between launches, so an interval from
    a single one is too narrow; below 5 the verdicts of comparisons are not to be trusted."""

    min_time_s: float | None = Field(default=None, gt=0)
    """Seconds that one launch measures at least, all its models together, after loading and warm-up (default 10,
    quick 2); time that it waited for a core does not count. It goes on until every model also has `min_samples`, but
    never beyond ten times this."""

    min_samples: int | None = Field(default=None, ge=20)
    """Calls that one launch records of every model at least (default 1000, quick 100). A model too slow for that within
    ten times `min_time_s` gets fewer (never below 20), and the percentiles that need more are left out."""

    batch: int = Field(default=1, ge=1)
    """Rows of input in one call."""

    threads: int = Field(default=1, ge=0)
    """Threads that an engine may use for one call; 0 leaves it to the engine."""

    quiet_wait_s: float | None = Field(default=None, ge=0)
    """Seconds that a launch waits at most for other work on the machine to calm down (default 60, quick 5)."""

    cpu: int | None = Field(default=None, ge=0)
    """Core to pin the measuring process to, for one thread only; null leaves the choice to the scheduler."""

    profile: bool = True
    """Also measure the time of each layer of every build, after the launches and in a process of its own, because
    profiling slows a network: at most 50 inferences or half a second (quick: 20, a fifth of a second)."""

    throughput: ThroughputSettings | None = None
    """Also measure throughput with several calls at once; `{}` for the defaults."""

    load: LoadSettings | None = None
    """Also measure latency under a load, e.g. `{rates: [50, 100], p99_limit_ms: 5}`."""

    sustain_s: Seconds = Field(default=0.0, ge=0)
    """Seconds, or e.g. "30m", of one long run of the first build beside the last one as a reference, after the
    launches: does it become slower, hotter, larger? 0: none."""

    time_limit_s: float = Field(default=900.0, gt=0)
    """Seconds after which one measuring process (a long run: beyond its own time) is ended: the measurement failed."""

    @model_validator(mode="after")
    def _end_in_time(self) -> BenchSettings:
        least = FEWEST_REQUESTS / self.time_limit_s
        for rate in self.load.rates if self.load else ():
            if rate < least:
                takes = f"{FEWEST_REQUESTS} requests, the fewest, take {FEWEST_REQUESTS / rate:g} s"
                raise ValueError(
                    f"`load.rates` has {rate:g}: {takes}, and `time_limit_s` is {self.time_limit_s:g} | "
                    f"give rates of at least {math.ceil(least * 1000) / 1000:g}, or raise `time_limit_s`"
                )
        return self

    @model_validator(mode="after")
    def _pin_one_thread(self) -> BenchSettings:
        if self.cpu is not None and self.threads != 1:
            raise ValueError("`cpu` pins all threads to one core | leave out `cpu`, or set `threads: 1`")
        return self

    def effort(self) -> Effort:
        """Times and counts of one launch, with the defaults of the quick or the full measurement filled in."""
        full_s, full_n, full_wait_s = (2.0, 100, 5.0) if self.quick else (10.0, 1000, 60.0)
        min_time_s = full_s if self.min_time_s is None else self.min_time_s
        return Effort(
            min_time_s=min_time_s,
            max_time_s=10 * min_time_s,
            min_samples=full_n if self.min_samples is None else self.min_samples,
            quiet_wait_s=full_wait_s if self.quiet_wait_s is None else self.quiet_wait_s,
            warm_window_s=0.1 if self.quick else 0.25,
            warm_min_s=0.3 if self.quick else 0.5,
            warm_max_s=1.0 if self.quick else 10.0,
            profile_runs=20 if self.quick else 50,
            profile_max_s=0.2 if self.quick else 0.5,
            leak_s=0.3 if self.quick else 3.0,
            energy_s=1.0 if self.quick else 5.0,
            throughput_s=0.5 if self.quick else 2.0,
            requests=1000 if self.quick else 3000,
            request_max_s=10.0 if self.quick else 60.0,
            search_s=60.0 if self.quick else 300.0,
        )
