"""edgekd data check: what a data set holds, and what a run would make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edgekd.data.findings import Survey

app = typer.Typer(
    help="See what a data set holds, and what is wrong with it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)
_MOST_CLASSES = 20
_MOST_BROKEN = 10
_THUMBNAILS = 144


@app.callback()
def _group() -> None:
    """Keep `check` a command of its own while it is the only one."""


@app.command("check")
def check(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder or a file with data, or a pipeline file, for its `data:`.")
    ],
    kind: Annotated[
        str | None,
        typer.Option("--kind", help="folder, parquet, npz, csv, webdataset or huggingface [default: by the path]."),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Column, extension or array of the images [default: a usual name].")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="The same of the labels [default: a usual name, or none].")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Resize images to it, as `data.size` does.")
    ] = None,
    skip_broken: Annotated[
        float, typer.Option("--skip-broken", help="Share of the images that may be broken, as `data.skip_broken`.")
    ] = 0.0,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a contact sheet, a page of at most 1 MB.")
    ] = None,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Read a data set once and print what was understood; exit with 4 if a run with these options would refuse it."""
    from edgekd.data.survey import survey

    settings, base, block = _settings(path, kind, image, label, size, skip_broken)
    found = survey(settings, base, thumbnails=_THUMBNAILS if html else 0)
    if settings.size is None and found.sizes().get("count", 0) > 1 and path.suffix.lower() not in (".yaml", ".yml"):
        block["size"] = found.sizes()["middle"]  # a block that would run
    if html is not None:
        from edgekd.files import write_atomic
        from edgekd.report.contact_sheet import contact_sheet

        write_atomic(html, contact_sheet(found, str(path)))
    if json_:
        print_json({"path": str(path), "data": block, **found.document()})
    else:
        typer.echo(_printable(_text(found, path, block)))
        if html is not None and not quiet:
            typer.echo(f"contact sheet: {html}")
    return DataError.exit_code if found.problems else 0


def _settings(
    path: Path, kind: str | None, image: str | None, label: str | None, size: str | None, skip_broken: float
) -> tuple[Any, Path, dict[str, Any]]:
    """The settings to read with, the folder where relative paths start, and the block of a pipeline file."""
    from edgekd.config import validate
    from edgekd.data import DataSettings

    if path.suffix.lower() in (".yaml", ".yml"):
        from edgekd.pipeline.schema import load_pipeline

        pipeline = load_pipeline(path, ())
        return pipeline.settings.data, pipeline.base, pipeline.settings.data.model_dump(mode="json", exclude_unset=True)
    from edgekd.data.recognise import recognise

    block = recognise(path, kind=kind, image=image, label=label)
    if size is not None:
        block["size"] = _pair(size)
    if skip_broken:
        block["skip_broken"] = skip_broken
    settings, problems = validate(DataSettings, block)
    if settings is None:
        raise ConfigError(problems[0].message, hint=problems[0].hint)
    return settings, Path(), block


def _pair(text: str) -> list[int]:
    words = text.lower().split("x")
    if len(words) != 2 or not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise ConfigError(f"--size {text}: is not of the form HxW", hint="height and width in pixels, e.g. 224x224")
    return [int(word) for word in words]


def _text(found: Survey, path: Path, block: dict[str, Any]) -> str:
    from edgekd.report.table import align

    labelled = next(iter(found.classes.get("train", {})), None)
    count = f", {len(found.classes['train'][labelled])} classes" if labelled else ", no labels"
    lines = [f"{path}: {found.kind}, {sum(found.samples.values())} samples{count}", "", align(_splits(found))]
    for target in found.classes.get("train", {}):
        rows = _classes(found, target)
        lines += ["", align(rows[: _MOST_CLASSES + 1])]
        lines += [f"and {len(rows) - _MOST_CLASSES - 1} more classes"] if len(rows) > _MOST_CLASSES + 1 else []
    lines += ["", *_facts(found)]
    for split, broken in found.broken.items():
        lines += [f"broken ({split}): {one.name}: {one.why}" for one in broken[:_MOST_BROKEN]]
        lines += [f"and {len(broken) - _MOST_BROKEN} more"] if len(broken) > _MOST_BROKEN else []
    lines += [f"note: {note}" for note in found.notes]
    for message, hint in found.problems:
        lines += [f"problem: {message}", f"    help: {hint}"]
    if path.suffix.lower() not in (".yaml", ".yml"):
        lines += ["", "In a pipeline file:", "data:"]
        lines += [f"  {key}: {_flow(value)}" for key, value in block.items()]
    return "\n".join(lines)


def _splits(found: Survey) -> list[list[str]]:
    rows = [["split", "samples", "broken", "imbalance", "in a run"]]
    for split in dict.fromkeys([*found.samples, *found.in_a_run]):
        samples = found.samples.get(split)
        ratios = found.imbalance(split).values() if split in found.classes else ()
        ratio = ", ".join("a class is empty" if one is None else f"{one:g}" for one in ratios)
        given = "drawn by seed" if samples is None else str(samples)
        broken = str(len(found.broken[split])) if split in found.broken else ""
        rows.append([split, given, broken, ratio, str(found.in_a_run.get(split, ""))])
    return rows


def _classes(found: Survey, target: str) -> list[list[str]]:
    splits = list(found.classes)
    names = dict.fromkeys(name for split in splits for name in found.classes[split].get(target, {}))
    rows = [[str(found.classes[split].get(target, {}).get(name, 0)) for split in splits] for name in names]
    return [[target, *splits], *([name, *row] for name, row in zip(names, rows, strict=True))]


def _facts(found: Survey) -> list[str]:
    lines = [f"{name}: {kind}" for name, kind in found.inputs.items()]
    sizes = found.sizes()
    if sizes:
        low, middle, high = ("x".join(map(str, sizes[name])) for name in ("smallest", "middle", "largest"))
        many = f"{low} to {high}, the middle one {middle} ({sizes['count']} sizes)"
        lines.append(f"height x width: {low if sizes['count'] == 1 else many}")
    for name in ("format", "mode", "notes"):
        counts = found.pictures.get(name)
        if counts:
            lines.append(
                f"{name}: {', '.join(f'{n} {value}' for value, n in counts.most_common())}".removeprefix("notes: ")
            )
    return lines + [f"{name}: {values}" for name, values in found.channels.items()]


def _flow(value: Any) -> str:
    """A plain value as YAML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    plain = isinstance(value, str) and value.replace("/", "").replace("_", "").replace(".", "").isalpha()
    return str(value) if plain else json.dumps(value)


def _printable(text: str) -> str:
    """Names of files need not be text in any encoding."""
    return text.encode("utf-8", "backslashreplace").decode()
