"""Options of a latency measurement."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator

from edgekd.config.settings import Settings


@dataclass(frozen=True)
class Effort:
    """How long one launch may wait, warm up and measure: the settings with every default resolved."""

    min_time_s: float
    max_time_s: float
    min_samples: int
    quiet_wait_s: float
    warm_window_s: float
    warm_min_s: float
    warm_max_s: float
    profile_runs: int
    profile_max_s: float


class BenchSettings(Settings):
    """Latency of every build of a target, interleaved in one process, over several launches of that process."""

    quick: bool = False
    """A fifth of the measuring time, for a first look and for CI; the report says that it was quick."""

    launches: int = Field(default=5, ge=1)
    """How many processes measure, one after the other. Memory layout differs between launches, so an interval from
    a single one is too narrow; below 5 the verdicts of comparisons are not to be trusted."""

    min_time_s: float | None = Field(default=None, gt=0)
    """Seconds that one launch measures at least, all its models together, after loading and warm-up (default 10,
    quick 2). It goes on until every model also has `min_samples`, but never beyond ten times this."""

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

    time_limit_s: float = Field(default=900.0, gt=0)
    """Seconds after which one launch is ended and the measurement fails."""

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
        )
