"""edgekd check: within a minute and without data, whether a network can go all the way, and what stays float."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.networks import ArgsOption, WeightsOption, network_of
from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json, say_error
from edgekd.errors import ConfigError

if TYPE_CHECKING:
    from edgekd.models.settings import ModelSettings
    from edgekd.quantize.settings import QuantizationSettings

_DEFAULT_TARGETS = ("openvino", "onnxruntime")
Subject = tuple["ModelSettings", dict[str, tuple[int, ...]], "QuantizationSettings", Path]


def check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A pipeline file, in place of --model.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="REF", help="package.module:factory, or a network of the zoo.")
    ] = None,
    weights: WeightsOption = None,
    args: ArgsOption = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="[NAME=]1x3x224x224", help="Shape of an input; repeatable, in their order."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="RUNTIME[:DEVICE]", help="An engine to build for; repeatable."),
    ] = None,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """See within a minute if a network can be captured, quantized, exported in 8 bits and built; what stays float."""
    from edgekd.pipeline.check import check_network, document, lines_of
    from edgekd.pipeline.compress import targets_of

    if (file is None) == (model is None):
        raise ConfigError(
            "check takes a pipeline file or --model, one of the two",
            hint="e.g. edgekd check --model my_pkg.nets:build --input 1x3x224x224",
        )
    if file is not None and (idle := _first(("--weights", weights), ("--args", args))):
        raise ConfigError(f"{idle} beside a pipeline file, which says it itself", hint=f"leave {idle} out")
    shapes = dict(_shape(text, index, len(inputs or ())) for index, text in enumerate(inputs or ()))
    if file is not None:
        subjects, engines = _of_file(file, shapes)
        engines = engines if target is None else _engines(targets_of(target))
    else:
        assert model is not None
        if not shapes:
            raise ConfigError(
                "--input is missing", hint="give the shape of what the network takes: --input 1x3x224x224"
            )
        subjects, engines = (
            [_of_options(model, args, weights, shapes)],
            _engines(targets_of(target or _DEFAULT_TARGETS)),
        )
    found = [check_network(s[0], s[1], s[2], engines, s[3]) for s in subjects]
    if json_:
        print_json([document(one) for one in found])
    else:
        for line in (line for one in found for line in lines_of(one)):
            typer.echo(line)
    failed = max((one.error for one in found if one.error), key=lambda error: error.exit_code, default=None)
    if failed is None:
        return 0
    say_error(failed, ["--log-format", log_format])  # the document of --json is out already
    return failed.exit_code


def _first(*options: tuple[str, Any]) -> str | None:
    return next((name for name, value in options if value), None)


def _engines(targets: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Engine and device by target, with the engine's default device filled in."""
    found = {}
    for name, options in targets.items():
        usual = "GPU" if options["runtime"].startswith("tensorrt") else "CPU"
        found[name] = (options["runtime"], options.get("device", usual))
    return found


def _of_options(
    model: str, args: list[str] | None, weights: Path | None, shapes: dict[str, tuple[int, ...]]
) -> Subject:
    from edgekd.models.settings import ModelSettings
    from edgekd.quantize.settings import QuantizationSettings

    given = network_of(model, args, weights)
    if model.endswith(".onnx"):
        raise ConfigError(
            "--model: an ONNX file is captured already", hint="edgekd measure times it; it can also teach"
        )
    path = None if weights is None else str(weights.absolute())
    settings = ModelSettings(model=model, args=dict(given.args), weights=path)
    return settings, shapes, QuantizationSettings(), Path.cwd()


def _of_file(file: Path, shapes: dict[str, tuple[int, ...]]) -> tuple[list[Subject], dict[str, tuple[str, str]]]:
    """The network that a pipeline file ships, as its `quantize` stage wants it; its data tells the shape."""
    import json
    import tempfile

    from edgekd.pipeline.plan import Planner
    from edgekd.pipeline.schema import load_pipeline, networks_of
    from edgekd.quantize.settings import QuantizationSettings
    from edgekd.stages.context import shipped_by
    from edgekd.stages.settings import QuantizeStage
    from edgekd.store import Store

    pipeline = load_pipeline(file)
    options = next((s.settings for s in pipeline.stages if isinstance(s.settings, QuantizeStage)), None)
    known = {} if options is None else options.canonical()
    wanted = {name: value for name, value in known.items() if name in QuantizationSettings.model_fields}
    quantization = QuantizationSettings.model_validate_json(json.dumps(wanted))
    maker = next(entry for entry in pipeline.stages if entry.name == shipped_by(pipeline.roles))
    settings = networks_of(maker)[()]
    if not shapes:
        from edgekd.stages.networks import example_inputs, factory_defaults, fresh_model

        with tempfile.TemporaryDirectory() as scratch:
            common = Planner.open(pipeline, Store(Path(scratch))).common()
            made = fresh_model(common, settings.model_copy(update={"weights": None}), seed=0)
            shapes = {name: tuple(x.shape) for name, x in example_inputs(common, made).items()}
            filled = factory_defaults(common, settings)
        settings = settings.model_copy(update={"args": {**filled, **settings.args}})
    engines = {name: (str(target.runtime), target.device_name) for name, target in pipeline.settings.targets.items()}
    return [(settings, shapes, quantization, pipeline.base)], engines


def _shape(text: str, index: int, count: int) -> tuple[str, tuple[int, ...]]:
    """Name and shape of `--input`."""
    name, equals, sizes = text.rpartition("=")
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6})+", sizes):
        raise ConfigError(f"--input {text}: is no shape", hint="write BATCHxCHANNELSxHEIGHTxWIDTH, e.g. 1x3x224x224")
    if (equals and not name.isidentifier()) or (not equals and count > 1):
        raise ConfigError(
            f"--input {text}: has no name", hint="with several inputs: --input image=1x3x32x32 --input .."
        )
    return name or "input", tuple(map(int, sizes.split("x")))
