"""edgekd measure MODEL...: latency of ONNX and engine files; several are interleaved and compared."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, make_log, print_json
from edgekd.errors import ConfigError

if TYPE_CHECKING:
    from edgekd.bench.settings import BenchSettings

_MODELS = "ONNX files, OpenVINO's model.xml, TensorRT's .plan or .engine with its engine.json, or folders of builds."


def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help=_MODELS)],
    runtime: Annotated[
        str | None, typer.Option("--runtime", help="The engine for ONNX files: `edgekd list runtimes`. [onnxruntime]")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="The device in the engine's words. [CPU; GPU for TensorRT]")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Measure there: ssh://USER@HOST[:PORT], or a name of `edgekd target`.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of input in one call.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of the engine; 0 is its choice.")] = 1,
    cpu: Annotated[int | None, typer.Option("--cpu", min=0, help="Core to pin the measuring process to.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the time, for a first look.")] = False,
    launches: Annotated[
        int, typer.Option("--launches", min=1, help="Processes that measure, one after the other.")
    ] = 5,
    min_time: Annotated[
        str | None, typer.Option("--min-time", metavar="TIME", help="Least time of a launch: 10s, or 2s with --quick.")
    ] = None,
    throughput: Annotated[bool, typer.Option("--throughput", help="Also with several calls at once.")] = False,
    batches: Annotated[
        str | None, typer.Option("--batches", metavar="N,..|auto", help="Rows of input for --throughput. [1]")
    ] = None,
    streams: Annotated[
        str | None,
        typer.Option("--streams", metavar="N,..|auto", help="Calls at once for --throughput [auto] and --rate [1]."),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option("--rate", metavar="R,..", help="Also latency of requests that arrive R times a second."),
    ] = None,
    p99_limit: Annotated[
        str | None,
        typer.Option("--p99-limit", metavar="TIME", help="Also the highest such rate with p99 below 5ms, .."),
    ] = None,
    sustain: Annotated[
        str | None, typer.Option("--sustain", metavar="TIME", help="Also one long run of the first model: 30m, ..")
    ] = None,
    time_limit: Annotated[
        str, typer.Option("--time-limit", metavar="TIME", help="End a measuring process that takes longer.")
    ] = "15m",
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Measure latency in processes of their own; several models are interleaved and compared."""
    from edgekd.runtimes.registry import RUNTIMES

    if runtime is not None and runtime not in RUNTIMES:
        from edgekd.config.settings import did_you_mean

        raise ConfigError(f"--runtime {runtime}: is not known", hint=did_you_mean(runtime, RUNTIMES))
    if cpu is not None and host is None and hasattr(os, "sched_getaffinity") and cpu not in os.sched_getaffinity(0):
        cores = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ConfigError(f"--cpu {cpu}: there is no such core for this process", hint=f"it may use: {cores}")
    asked: dict[str, Any] = {"quick": quick, "launches": launches, "batch": batch, "threads": threads, "cpu": cpu}
    asked |= {"time_limit_s": _seconds("--time-limit", time_limit), "min_time_s": _seconds("--min-time", min_time)}
    asked["sustain_s"] = _seconds("--sustain", sustain) or 0.0
    asked |= _several_at_once(throughput, batches, streams, rate, _seconds("--p99-limit", p99_limit))
    settings = _settings(asked)
    log = make_log(log_format, quiet or json_)
    rows = _measure(models, runtime, device, settings, log.info, host)
    if json_:
        print_json(rows)
        return
    from edgekd.cli.measured import lines

    for line in lines(rows):
        typer.echo(line)


def _several_at_once(
    throughput: bool, batches: str | None, streams: str | None, rate: str | None, limit_s: float | None
) -> dict[str, Any]:
    """Settings of throughput and load; options that do nothing without another are refused."""
    loaded = rate is not None or limit_s is not None
    if batches is not None and not throughput:
        raise ConfigError("--batches is for --throughput", hint="add --throughput, or use --batch")
    if streams is not None and not (throughput or loaded):
        raise ConfigError("--streams is for --throughput, --rate and --p99-limit", hint="add one of these")
    found: dict[str, Any] = {}
    at_once = "auto" if streams in (None, "auto") else _numbers("--streams", streams or "", int)
    if throughput:
        rows = "auto" if batches == "auto" else _numbers("--batches", batches or "1", int)
        found["throughput"] = {"batches": rows, "streams": at_once}
    if loaded:
        rates = _numbers("--rate", rate, float) if rate is not None else []
        limit_ms = None if limit_s is None else limit_s * 1e3
        found["load"] = {"rates": rates, "p99_limit_ms": limit_ms, "streams": 1 if at_once == "auto" else at_once[0]}
    return found


def _seconds(option: str, text: str | None) -> float | None:
    from edgekd.config.durations import seconds

    try:
        found = None if text is None else seconds(text)
    except ValueError as error:
        message, _, hint = str(error).partition(" | ")
        raise ConfigError(f"{option}: {message}", hint=hint) from None
    if found is not None and found <= 0:
        raise ConfigError(f"{option} {text}: has to be longer than nothing", hint="write e.g. 10s")
    return found


def _numbers(option: str, text: str, kind: type[int] | type[float]) -> list[Any]:
    """Positive numbers between commas."""
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < one < float("inf") for one in found):
        raise ConfigError(f"{option} {text}: not a list of positive numbers", hint=f"write e.g. {option} 1,8")
    return found


def _settings(asked: dict[str, Any]) -> BenchSettings:
    from edgekd.bench.settings import BenchSettings
    from edgekd.config.settings import validate

    settings, problems = validate(BenchSettings, asked)
    if settings is None:
        raise ConfigError(problems[0].message, hint=problems[0].hint)
    return settings


def _measure(
    models: list[Path], runtime: str | None, device: str | None, settings: BenchSettings, tell: Any, host: str | None
) -> dict[str, Any]:
    """Rows by the names that the report gives them; `sustain` is a row or null."""
    from edgekd.bench.given import look_at, subjects_of
    from edgekd.bench.measure import measure_rows
    from edgekd.bench.targets.book import target_for
    from edgekd.runtimes.protocol import noise

    given = look_at(models, runtime)
    on = target_for(host) if host else None
    place = "device" if host else "local"
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        subjects, inputs = subjects_of(
            given, device=device, threads=settings.threads, place=place, on=on, scratch=scratch
        )
        feeds = noise(inputs, settings.batch)
        folder = scratch / "samples"
        rows = measure_rows(subjects, feeds, settings=settings, folder=folder, seed=0, progress=tell, on=on, host=host)
    suffix = f".given@{place}"
    # The samples are gone with the scratch folder.
    latency = [{**row, "samples_path": None} for row in rows.latency]
    pairs = [{**p, "a": p["a"].removesuffix(suffix), "b": p["b"].removesuffix(suffix)} for p in rows.comparisons]
    more = {"throughput": rows.throughput, "load": rows.load, "sustain": rows.sustain}
    return {"latency": latency, "comparisons": pairs, **more}
