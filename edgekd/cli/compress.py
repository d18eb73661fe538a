"""edgekd compress: one's own network and data to verified INT8 builds, without a pipeline file."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.networks import ArgsOption, ModelOption, WeightsOption, network_of, parse_size
from edgekd.cli.shared import (
    DEFAULT_STORE,
    JsonOption,
    LogFormatOption,
    OfflineOption,
    QuietOption,
    RemoteStoreOption,
    StoreModeOption,
    StoreOption,
    check_stage_names,
    make_log,
    print_json,
    show_report,
)
from edgekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edgekd.pipeline.compress import Wish
    from edgekd.pipeline.log import Log
    from edgekd.pipeline.schema import Pipeline
    from edgekd.pipeline.start import RunOptions


_MAX_DROP = (
    'What 8 bits may cost, e.g. "0.5 pt"; beyond it float is kept [default: 1 pt, without labels 3 pt]. Given with '
    "--student also what that may lose to the teacher; beyond it the run ends with 5."
)


def compress(
    model: ModelOption,
    data: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="Images in a folder, Parquet, .npz, CSV, tars, ..")
    ],
    target: Annotated[
        list[str], typer.Option("--target", metavar="RUNTIME[:DEVICE][@HOST]", help="Where it shall run; repeatable.")
    ],
    weights: WeightsOption = None,
    args: ArgsOption = None,
    student: Annotated[
        str | None, typer.Option("--student", metavar="REF", help="Distil this smaller network first.")
    ] = None,
    student_args: Annotated[
        list[str] | None, typer.Option("--student-args", metavar="K=V", help="An argument of its factory; repeatable.")
    ] = None,
    student_weights: Annotated[Path | None, typer.Option("--student-weights", help="Weights it starts from.")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the data [default: by its size].")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="HxW", help="Resize images to this.")] = None,
    fit: Annotated[
        str | None, typer.Option("--fit", help="With --size: stretch (default), crop the middle, or pad.")
    ] = None,
    channels: Annotated[int | None, typer.Option("--channels", help="1 makes images grey, 3 makes them RGB.")] = None,
    normalize: Annotated[
        str | None,
        typer.Option("--normalize", help="auto, none, imagenet, or MEAN/STD per channel, as .5,.5,.5/.2,.2,.2."),
    ] = None,
    image: Annotated[str, typer.Option("--image", help="Column or extension of the images, if not a usual one.")] = "",
    label: Annotated[str, typer.Option("--label", help="Column or extension of the labels, if not a usual one.")] = "",
    task: Annotated[str, typer.Option("--task", help="classification or regression.")] = "classification",
    max_drop: Annotated[str | None, typer.Option("--max-drop", help=_MAX_DROP)] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the pipeline [default: of the network].")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="All randomness comes from it.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="Folder for the report, the builds and the pipeline file.")] = Path(
        "runs/compress"
    ),
    to: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the pipeline file and stop.")] = False,
    store: StoreOption = DEFAULT_STORE,
    store_mode: StoreModeOption = "rw",
    remote_store: RemoteStoreOption = None,
    offline: OfflineOption = False,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Quantize, compile, evaluate and measure a network as it is; with --student distil it first."""
    log = make_log(log_format, quiet or json_)
    from edgekd.models.names import elsewhere
    from edgekd.pipeline.compress import Wish, check_text, pipeline_text, targets_of
    from edgekd.pipeline.found_data import find_data

    given = network_of(model, args, weights)
    if student is None and (student_args or student_weights or epochs):
        idle = "--student-args" if student_args else "--student-weights" if student_weights else "--epochs"
        raise ConfigError(
            f"{idle} without a --student", hint="nothing is trained without one; add --student, or leave it"
        )
    if student is None and elsewhere(model) == "onnx":
        raise ConfigError(
            f"--model {model}: an ONNX file can only teach", hint="add --student, or give the network it was made of"
        )
    small = None if student is None else network_of(student, student_args, student_weights, "--student")
    if task not in ("classification", "regression"):
        raise ConfigError(f"--task {task}: is not known", hint="write classification or regression")
    if channels not in (None, 1, 3):
        raise ConfigError(f"--channels {channels}: images have 1 or 3", hint="write --channels 1 for grey images")
    targets_of(target)
    if fit is not None and (size is None or fit not in ("stretch", "crop", "pad")):
        wrong = "does nothing without --size" if size is None else "is not known"
        raise ConfigError(f"--fit {fit}: {wrong}", hint="e.g. --size 224x224 --fit crop; also stretch and pad")
    parse_normalize(normalize)
    found = find_data(
        data, size=parse_size(size) if size else None, channels=channels, seed=seed, image=image, label=label
    )
    wish = Wish(
        given,
        small,
        found,
        target,
        out,
        task,
        parse_normalize(normalize),
        epochs,
        max_drop,
        seed,
        name,
        _weak(target),
        fit,
    )
    text = pipeline_text(wish)
    pipeline = check_text(wish, text)  # before anything is written: what is refused leaves nothing behind
    check_stage_names("--to", [to] if to else [], [stage.name for stage in pipeline.stages])
    from edgekd.pipeline.start import RunOptions, check_first
    from edgekd.store import StorePlace

    place = StorePlace(store.absolute(), store_mode, None if offline else remote_store)
    try:
        options = check_first(pipeline, RunOptions(out, place, to), here=not dry_run)
    except DataError as error:
        there = "under `data:` of the file that --dry-run writes"
        hint = (error.hint or "").replace("`data.skip_broken: 0.01`", f"`skip_broken: 0.01` {there}")
        raise DataError(error.message, hint=hint) from error
    file = _write(wish, text, log)
    log.info(f"data: {data}: {found.words}")
    _say_guesses(wish, log)
    log.info(f"wrote {file}; `edgekd run {file} --out {out}` does the same again")
    if dry_run:
        if json_:
            print_json({"pipeline": str(file)})
        return 0
    return _run(pipeline, wish, options, log, json_=json_)


def _say_guesses(wish: Wish, log: Log) -> None:
    """What was chosen for want of an option, and may be wrong or unexpected."""
    from edgekd.pipeline.compress import MAX_DISAGREEMENT, MAX_DROP

    if wish.normalize is None:
        log.warning("normalised by this data's mean and std; give --normalize if the weights were trained otherwise")
    if wish.max_drop is None and not wish.data.labelled:
        log.info(f"--max-drop: {MAX_DISAGREEMENT} of agreement, for there are no labels (with labels {MAX_DROP})")


def _weak(targets: list[str]) -> bool:
    """Whether a target is this machine's processor, and that saturates 8-bit sums."""
    from edgekd.runtimes.saturation import saturates

    here = [word for word in targets if word in ("openvino", "onnxruntime", "openvino:CPU", "onnxruntime:CPU")]
    return bool(here) and saturates()


def _write(wish: Wish, text: str, log: Log) -> Path:
    """Write the pipeline file; another one that lies there, which somebody may have edited, is kept beside it."""
    from edgekd.files import write_atomic
    from edgekd.pipeline.compress import FILE, PREVIOUS
    from edgekd.pipeline.start import claimed

    file = wish.out / FILE
    with claimed(wish.out):
        earlier = file.read_bytes() if file.is_file() else text.encode()
        names = (wish.out / PREVIOUS.format(f".{n}" if n else "") for n in count())
        kept = next(path for path in names if not path.exists() or path.read_bytes() == earlier)
        if earlier != text.encode():
            file.replace(kept)
            log.warning(f"{file} was edited, or written for other options: it is now {kept}")
        write_atomic(file, text)
    return file


def _run(pipeline: Pipeline, wish: Wish, options: RunOptions, log: Log, *, json_: bool) -> int:
    from edgekd.pipeline.compress import FILE
    from edgekd.pipeline.estimate import tell_duration
    from edgekd.pipeline.runner import run
    from edgekd.report.kept import lost, verdicts
    from edgekd.report.schema import Report

    seconds = tell_duration(pipeline, options, log)
    outcome = run(pipeline, options, log)
    report = Report.model_validate(outcome.report)
    lines = verdicts(report) if outcome.exit_code in (0, 5) else []
    warnings = lost(report, pipeline.settings.gates[0].limit()) if outcome.exit_code == 0 else []
    if json_:
        kept = [{"target": target, "verdict": text} for target, text in lines]
        print_json({"verdicts": kept, "warnings": warnings, "training_estimate_s": seconds, "report": outcome.report})
        return outcome.exit_code
    show_report(
        report, wish.out, f"to go on: edit {wish.out / FILE} and `edgekd run {wish.out / FILE} --out {wish.out}`"
    )
    for target, text in lines:
        typer.echo(f"{target}: {text}")
    for text in warnings:
        log.warning(text)
    return outcome.exit_code


_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def parse_normalize(text: str | None) -> Any:
    """The value of `--normalize` as it stands in a pipeline file; None: nothing was said."""
    if text is None or text in ("auto", "none"):
        return text
    if text == "imagenet":
        return _IMAGENET
    mean, slash, std = text.partition("/")
    try:
        found = {"mean": [float(x) for x in mean.split(",")], "std": [float(x) for x in std.split(",")]}
    except ValueError:
        found = {}
    if not slash or not found or len(found["mean"]) != len(found["std"]) or not all(x > 0 for x in found["std"]):
        raise ConfigError(
            f"--normalize {text}: is no mean and deviation",
            hint="write auto, none, imagenet, or e.g. 0.49,0.48,0.45/0.25,0.24,0.26 (of pixels / 255)",
        )
    return found
