"""The parts of the report that were measured on a target: latency, comparisons, throughput, latency under a load."""

from __future__ import annotations

from typing import Literal

from pydantic import AliasChoices, ConfigDict, Field

from edgekd.report.values import Interval, Measured, Part, RelativePath


class Latency(Part):
    """How long one inference takes on a target. A percentile with fewer than 10 samples beyond it is null."""

    model_config = ConfigDict(extra="allow")

    target: str
    """Name of the target."""
    runtime: str
    """The inference engine."""
    device: str
    """The device, in the engine's words."""
    model: str
    """Role of the model, or the file that was measured."""
    precision: str
    """The precision of the build."""
    batch: int
    """Samples in one inference."""
    threads: int
    """Threads that the engine was given; 0 is its own choice."""
    host: str | None = None
    """The device that measured it; null is the machine of `environment`."""
    scenario: Literal["SingleStream", "MultiStream"] | None = None
    """MLPerf's name: one inference after the other, of one sample or of several."""
    n: int
    """Number of inferences measured."""
    launches: int
    """Number of processes that they are spread over."""
    few_launches: bool | None = None
    """True when these are too few for intervals to be of use: one tells nothing of what another would find."""
    quick: bool
    """True when the measurement was shortened."""
    p50_ms: float
    """Median wall time of one inference, in milliseconds."""
    p90_ms: Measured = None
    """90th percentile, in milliseconds."""
    p95_ms: Measured = None
    """95th percentile, in milliseconds."""
    p99_ms: Measured = None
    """99th percentile, in milliseconds."""
    ci95: dict[str, Interval] = Field({})
    """95% interval of each percentile and of the throughput, by the name of its field."""
    throughput_per_s: Measured = None
    """Samples per second, one inference after the other."""
    load_ms: Measured = None
    """Time to load the build, in milliseconds."""
    first_ms: Measured = None
    """Time of the first inference, in milliseconds."""
    runs_1_to_10_ms: tuple[float, ...] = ()
    """Times of the first ten inferences, in milliseconds."""
    import_ms: Measured = None
    """Time to load the engine itself, in milliseconds."""
    read_ms: Measured = None
    """The part of load_ms that reads the file, in milliseconds; null where the engine does both in one."""
    compile_ms: Measured = None
    """The part of load_ms that makes the build ready, in milliseconds."""
    peak_rss_bytes: int | None = None
    """Largest resident memory (VmHWM) of a process with this model alone, in bytes."""
    rss_bytes: int | None = None
    """Its resident memory after the first inferences, in bytes."""
    memory_growth_bytes_per_call: Measured = None
    """How much its resident memory grew with each inference, in bytes; null when not watched for long enough."""
    leaks: bool | None = None
    """True when it grew nearly all the time, and by more than 1 MiB."""
    compute_ms: Measured = None
    """Median time of the network alone by the device's own clock, in milliseconds; null where it has none."""
    graph_ms: Measured = None
    """The same for kernels recorded as one graph; null where they cannot be recorded."""
    h2d_ms: Measured = None
    """Time to copy the inputs to the device, in milliseconds."""
    d2h_ms: Measured = None
    """Time to copy the outputs back, in milliseconds."""
    energy_mj_per_inference: Measured = None
    """Energy of one inference, all that the counter sees, in millijoules; null where nothing counts it."""
    energy_above_idle_mj: Measured = None
    """The same less what the idle machine takes in that time, in millijoules."""
    idle_power_w: Measured = None
    """Power of the idle machine just before, in watts."""
    energy_source: str | None = None
    """What counted: rapl (processor packages), nvml (the GPU's board), ina3221 (a Jetson's rails)."""
    steady: bool | None = None
    """False when warming up did not settle in time."""
    contended: bool | None = None
    """True when more than a fifth of the samples were disturbed by other processes."""
    throttled: bool | None = None
    """True when the device slowed itself down; null when it does not say."""
    warm_stable: bool | None = None
    """False when warming up ended before three windows agreed within 2%."""
    drift: Measured = None
    """The largest lasting step of latency within a launch: 0.2 is 20% slower."""
    power_mode: str | None = None
    """Power mode of the device; null when it does not say."""
    samples_path: RelativePath | None = None
    """An .npz with the wall time of every inference: milliseconds under the model's name, or nanoseconds under
    `<launch>/wall_ns` for each launch."""
    cpu_p50_ms: Measured = None
    """Median CPU time of one inference, in milliseconds."""
    p99_9_ms: Measured = Field(None, validation_alias=AliasChoices("p99_9_ms", "p999_ms"))
    """99.9th percentile, in milliseconds."""
    cpu: int | None = None
    """Core that the measuring process was pinned to; null when it was not."""


class Comparison(Part):
    """Two things measured interleaved, and which one is faster."""

    a: str
    """What is judged."""
    b: str
    """What it is judged against."""
    measure: str
    """What was compared, for example p50_ms."""
    ratio: float
    """The measure of a divided by that of b: below 1, a takes less."""
    ci95: Interval = None
    """95% interval of the ratio."""
    verdict: Literal["faster", "slower", "equivalent", "inconclusive"]
    """What a is, held against b."""
    target: str | None = None
    """Name of the target they were measured on."""
    clock: Literal["wall", "cpu"] | None = Field(None, validation_alias=AliasChoices("clock", "led_by"))
    """The clock behind ratio and verdict: wall, or cpu where other processes disturbed the wall clock."""
    wall_ratio: Measured = None
    """The ratio by wall time."""
    wall_ci95: Interval = None
    """95% interval of the ratio by wall time."""
    cpu_ratio: Measured = None
    """The ratio by CPU time; null where that means nothing."""
    cpu_ci95: Interval = None
    """95% interval of the ratio by CPU time."""


class _Row(Part):
    """What was measured, and where: fields that the rows below share."""

    target: str
    """Name of the target."""
    runtime: str
    """The inference engine."""
    device: str
    """The device, in the engine's words."""
    host: str | None = None
    """The device that measured it; null is the machine of `environment`."""
    model: str
    """Role of the model, or the file that was measured."""
    precision: str
    """The precision of the build."""


class Throughput(_Row):
    """Samples per second with several calls at once, each stream calling again as soon as its last call ended."""

    batch: int
    """Samples in one call."""
    streams: int
    """Calls that were under way at once."""
    scenario: Literal["Offline"] = "Offline"
    """MLPerf's name."""
    n: int
    """Number of calls."""
    seconds: float
    """Time from the first call to the end of the last, in seconds."""
    throughput_per_s: float
    """Samples per second."""
    ci95: dict[str, Interval] = Field({})
    """95% interval of throughput_per_s within this one process."""
    p50_ms: Measured = None
    """Median time of a call, in milliseconds."""
    p99_ms: Measured = None
    """99th percentile of the time of a call, in milliseconds; null for fewer than 10 calls beyond it."""
    saturated: bool = False
    """True when more streams than here brought less than 3%."""


class Load(_Row):
    """Latency of requests that arrive by chance (a Poisson process), counted from when each was due."""

    batch: int
    """Samples in one request."""
    streams: int
    """Requests that were served at once; the others waited."""
    scenario: Literal["Server"] = "Server"
    """MLPerf's name."""
    rate_per_s: float
    """Requests that arrive per second."""
    achieved_per_s: float
    """Requests that were answered per second."""
    n: int
    """Number of requests."""
    p50_ms: Measured = None
    """Median latency, in milliseconds, waiting included."""
    p90_ms: Measured = None
    """90th percentile, in milliseconds."""
    p99_ms: Measured = None
    """99th percentile, in milliseconds; null for fewer than 10 requests beyond it."""
    ci95: dict[str, Interval] = Field({})
    """95% interval of p99_ms."""
    kept_up: bool
    """False when the queue of those that waited only grew: the percentiles are then at least as large as given."""
    limit_ms: Measured = None
    """The limit of p99, in milliseconds; null when none was asked for."""
    met: bool | None = None
    """True when the whole interval of p99 is within the limit, false when it lies beyond or the queue grew; null when
    there is no limit, or the measurement does not tell."""
    highest: bool = False
    """True for the highest rate that was found to meet the limit."""
    note: str | None = None
    """Why nobody knows whether the limit is met; null where that is known, or no limit was asked for."""
