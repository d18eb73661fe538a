"""edgekd measure MODEL...: latency of ONNX files in an engine; several are interleaved and compared."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, make_log, print_json
from edgekd.errors import ConfigError


def measure(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="ONNX files.")],
    runtime: Annotated[str, typer.Option("--runtime", help="The engine: `edgekd list runtimes`.")] = "onnxruntime",
    device: Annotated[str, typer.Option("--device", help="The device in the engine's words.")] = "CPU",
    host: Annotated[
        str | None, typer.Option("--host", help="Measure there: ssh://USER@HOST[:PORT], or a name of `edgekd target`.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Rows of input in one call.")] = 1,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of the engine; 0 is its choice.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A fifth of the time, for a first look.")] = False,
    launches: Annotated[
        int, typer.Option("--launches", min=1, help="Processes that measure, one after the other.")
    ] = 5,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Measure latency in processes of their own; several models are interleaved and compared."""
    from edgekd.bench.settings import BenchSettings
    from edgekd.models.onnx_safety import check_onnx
    from edgekd.runtimes.registry import RUNTIMES

    if runtime not in RUNTIMES:
        from edgekd.config.settings import did_you_mean

        raise ConfigError(f"--runtime {runtime}: is not known", hint=did_you_mean(runtime, RUNTIMES))
    for model in models:
        if not model.is_file():
            raise ConfigError(f"{model}: no such file", hint="give the paths of ONNX files")
        if model.suffix != ".onnx":
            raise ConfigError(f"{model}: not an ONNX file", hint="give the file that it was built of")
        check_onnx(model)
    log = make_log(log_format, quiet or json_)
    settings = BenchSettings(quick=quick, launches=launches, batch=batch, threads=threads)
    with tempfile.TemporaryDirectory() as scratch:
        rows, comparisons = _measure(models, runtime, device, settings, Path(scratch), log.info, host)
    if json_:
        print_json({"latency": rows, "comparisons": comparisons})
        return
    for row in rows:
        low, high = row["ci95"]["p50_ms"]
        typer.echo(f"{row['model']}: p50 {row['p50_ms']:.3f} ms [{low:.3f}, {high:.3f}], n {row['n']}")
    for pair in comparisons:
        low, high = pair["ci95"]
        typer.echo(f"{pair['a']} / {pair['b']}: {pair['ratio']:.3f} [{low:.3f}, {high:.3f}]  {pair['verdict']}")


def _measure(
    models: list[Path], engine_name: str, device: str, settings: Any, scratch: Path, tell: Any, host: str | None
) -> Any:
    from edgekd.bench.measure import Subject, measure
    from edgekd.bench.targets.book import target_for
    from edgekd.runtimes.protocol import noise
    from edgekd.runtimes.registry import runtime

    on = target_for(host) if host else None
    engine = runtime(engine_name)
    engine.version()
    engine.check(device, run=on is None)
    place = "device" if host else "local"
    subjects: list[Subject] = []
    feeds: dict[str, Any] = {}
    for index, model in enumerate(models):
        folder = scratch / str(index)
        folder.mkdir()
        build = engine.compile(model, folder, device=device, threads=settings.threads, options={})
        # The same file may be named twice: comparing a model with itself is how a measure is tested.
        name = model.stem if [m.stem for m in models].count(model.stem) == 1 else f"{model.stem}#{index + 1}"
        subjects.append(Subject(name, place, engine_name, device, "given", folder / build.file, settings.threads))
        given = noise(build.inputs, settings.batch)
        if feeds and _kinds(feeds) != _kinds(given):
            raise ConfigError(
                f"{model} takes other inputs than {models[0]}", hint="compare models with the same inputs"
            )
        feeds = given
    rows, pairs = measure(subjects, feeds, settings=settings, folder=scratch, seed=0, progress=tell, on=on)
    suffix = f".given@{place}"
    rows = [{**row, "host": host} for row in rows]
    return rows, [{**p, "a": p["a"].removesuffix(suffix), "b": p["b"].removesuffix(suffix)} for p in pairs]


def _kinds(feeds: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Shape and type of each input: raw frames are another input than normalised images."""
    return {name: (x.shape, x.dtype) for name, x in feeds.items()}
