"""edgekd evaluate BUILD --data PATH: the metric of a build on other data, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edgekd.data.source import Data

_BATCH = 64
_READ_ROWS = 256


def evaluate(
    build: Annotated[Path, typer.Argument(metavar="BUILD", help="Folder of a build, or a file in it.")],
    data: Annotated[Path, typer.Option("--data", metavar="PATH", help="Labelled images: a folder, Parquet, .npz, ..")],
    split: Annotated[
        str | None, typer.Option("--split", help="test, validation or train [default: test if it is there, else all].")
    ] = None,
    image: Annotated[str, typer.Option("--image", help="Column of the images, in Parquet.")] = "",
    label: Annotated[str, typer.Option("--label", help="Column of the labels, in Parquet.")] = "",
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Score a build on data of your own: its metric with a 95% interval."""
    from edgekd.export.card import read_card
    from edgekd.runtimes.registry import runtime

    folder, card = read_card(build)
    engine = runtime(card["runtime"])
    opened, chosen = _opened(card, data, split, image, label)
    engine.version()
    engine.check(card["device"], run=True)
    try:
        scored = _scored(folder, card, opened, chosen)
    except DataError as error:
        hint = error.hint or ""
        if "skip_broken" in hint:  # an option of pipeline files: a score is of all images that were given
            hint = f"replace or remove it; `edgekd data check {data}` lists all that are broken"
        raise DataError(error.message, hint=hint) from error
    row = {"build": str(build), "data": str(data), "split": chosen, **scored}
    row["learned_from"] = _learned_from(folder, opened, chosen)
    if json_:
        print_json(row)
    else:
        low, high = row["ci95"]
        typer.echo(f"{row['name']} {row['value']:.4f} [{low:.4f}, {high:.4f}], n {row['n']} ({chosen} of {data})")
        if row["learned_from"]:
            typer.echo("note: the build was calibrated or trained on files of this data: new data may score lower")


def _learned_from(folder: Path, data: Data, split: Any) -> bool | None:
    """True where a split has files that the build was made with, by the manifest of its run or bundle. Else None.

    Never False: the manifest has one digest for a whole group of files (a folder of a class), so that one image more in
    it hides that the others were learned from.
    """
    from edgekd.report.lineage import learned_from, read_manifest

    above = folder.resolve().parents
    run = above[2] if len(above) > 2 and above[0].name == "builds" else folder
    known = learned_from(read_manifest(run))
    return None if set(known).isdisjoint(data.files_of(split).values()) else True


def _opened(card: dict[str, Any], path: Path, split: str | None, image: str, label: str) -> tuple[Data, str]:
    """The data, prepared as the build wants it, and the split that is scored: all of it where it has no test split."""
    from edgekd.data.sources import IMAGE_SOURCES
    from edgekd.pipeline.found_data import open_found, source_at

    source, options = source_at(path, image, label)
    how = next(iter(card["inputs"].values()))
    size = channels = None
    if source in IMAGE_SOURCES:
        if len(card["inputs"]) != 1 or not how.get("channels"):
            raise ConfigError(
                f"--data {path}: images, and the build takes none", hint="give the .npz that it was made on"
            )
        sizes = how["shape"][:2] if how["layout"] == "NHWC" else how["shape"][1:]
        size, channels = sizes, 1 if how["channels"] == "grey" else 3
    given: dict[str, Any] = {"validation": 0.0, "test": 0.0, "normalize": "none"}
    if source in IMAGE_SOURCES:
        given |= _as_resized(how)
    data = open_found(source, options, size=size, channels=channels, seed=0, **given)
    if not data.target_names:
        raise ConfigError(f"--data {path}: has no labels to score against", hint="lay images out as CLASS/*.jpg")
    counts = data.counts()
    chosen = split or ("test" if counts.get("test") else "train")
    if not counts.get(chosen):
        raise ConfigError(f"--split {chosen}: {path} has no such split", hint="leave --split out to score all of it")
    return data, chosen


def _as_resized(how: dict[str, Any]) -> dict[str, Any]:
    """How images become those that the build takes, as options of the data."""
    rule = how.get("resize") or {}
    found = {"background": how.get("background"), "interpolation": rule.get("filter"), "fit": rule.get("fit")}
    found["crop_share"] = rule.get("crop")
    return {name: value for name, value in found.items() if value is not None}


def _scored(folder: Path, card: dict[str, Any], data: Data, split: Any) -> dict[str, Any]:
    import numpy as np
    import torch

    from edgekd.cli.loading import load_build
    from edgekd.data.table import row_groups
    from edgekd.runtimes.protocol import infer_batched
    from edgekd.tasks.task import task_named

    table = data.load(split)
    session = load_build(folder, card)
    parts, targets = [], []
    output, head = _head(card, data)
    for rows in table.batches(row_groups(len(table), _READ_ROWS)):
        feeds = {name: _fed(rows.inputs[name].numpy(), how) for name, how in card["inputs"].items()}
        parts.append(infer_batched(session, feeds, min(_BATCH, card.get("max_batch", _BATCH)))[output])
        targets.append(rows.targets[head["target"]])
    session.close()
    found = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    target = _as_known(torch.cat(targets), card["labels"].get(output), data, head["target"])
    task = task_named(head["task"])
    task.check(found, target, str(folder))
    score = task.metric(found, target)
    return {"name": score.name, "value": score.value, "unit": score.unit, "n": score.n, "ci95": list(score.ci95)}


def _head(card: dict[str, Any], data: Data) -> tuple[str, dict[str, Any]]:
    """The first output whose target the data has."""
    for output, head in card["outputs"].items():
        if head["target"] in data.target_names:
            return output, head
    raise ConfigError(
        f"the data has {', '.join(data.target_names)}, and the build answers {', '.join(card['outputs'])}",
        hint="give data with the targets that the build was made for",
    )


def _fed(x: Any, how: dict[str, Any]) -> Any:
    """Rows of an input as the build takes them: frames as they are, else normalised as model.json says."""
    import numpy as np

    if how["normalized_by"] == "the file":
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    axes = (1, -1, *[1] * (x.ndim - 2)) if x.ndim > 1 else (-1,)
    mean, std = (np.float32(how[key]).reshape(axes) for key in ("mean", "std"))
    return np.ascontiguousarray((x.astype(np.float32) * np.float32(how["scale"]) - mean) / std)


def _as_known(target: Any, labels: list[str] | None, data: Data, name: str) -> Any:
    """Labels of the data as the indices that the build knows: folders may be fewer, or more, than its classes."""
    import torch

    names = data.classes_of(name)[1] if name in data.classes() else None
    if not labels or not names or list(names) == labels:
        return target
    unknown = [one for one in names if one not in labels]
    if unknown:
        raise DataError(f"the build knows no class {unknown[0]!r}", hint=f"its classes are: {', '.join(labels[:20])}")
    return torch.tensor([labels.index(one) for one in names])[target]
