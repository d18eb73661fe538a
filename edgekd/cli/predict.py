"""edgekd predict BUILD IMAGE..: what a build says of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json, say_error
from edgekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np


def predict(
    build: Annotated[Path, typer.Argument(metavar="BUILD", help="Folder of a build, or a file in it.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE..", help="Image files.")],
    most: Annotated[int, typer.Option("--most", min=1, help="How many classes to show.")] = 5,
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> int:
    """Show what a build says of images: classes with probabilities; unreadable images are named at the end."""
    from edgekd.cli.loading import load_build
    from edgekd.export.card import answers, read_card, takes_an_image
    from edgekd.runtimes.protocol import infer
    from edgekd.runtimes.registry import runtime

    folder, card = read_card(build)
    engine = runtime(card["runtime"])
    if not takes_an_image(card):
        raise ConfigError(f"{build}: takes no single image: {', '.join(card['inputs'])}", hint="feed it by its engine")
    ((name, how),) = card["inputs"].items()
    arrays, broken = _prepared(images, how)
    engine.version()
    engine.check(card["device"], run=True)
    session = load_build(folder, card)
    rows = []
    for path, x in arrays:
        for output, values in infer(session, {name: x}).items():
            if output not in card["classes"]:
                rows.append({"image": str(path), "output": output, "values": values[0].tolist()})
                continue
            found = answers(values[0], card["labels"].get(output), most)
            shown = [{"class": label, "probability": share} for label, share in found]
            rows.append({"image": str(path), "output": output, "classes": shown})
    session.close()
    if json_:
        print_json(rows)
    else:
        for row in rows:
            typer.echo(f"{row['image']}  {_words(row)}")
    for error in broken:
        say_error(error, ["--log-format", log_format])
    return DataError.exit_code if broken else 0


def _words(row: dict[str, Any]) -> str:
    if "values" in row:
        return f"{row['output']} {row['values']}"
    return "  ".join(f"{one['class']} {one['probability']:.4f}" for one in row["classes"])


def _prepared(
    paths: list[Path], how: dict[str, Any]
) -> tuple[list[tuple[Path, np.ndarray[Any, Any]]], list[DataError]]:
    """The images as the build takes them, each with its path, and what is wrong with those that cannot be decoded.

    Raises:
        ConfigError: a path names no file.
        DataError: not one can be decoded.
    """
    from edgekd.export.predict import prepare

    for path in paths:
        if not path.is_file():
            kind = "is a folder" if path.is_dir() else "there is no such file"
            raise ConfigError(f"{path}: {kind}", hint="give image files, e.g. images/*.jpg")
    arrays, broken = [], []
    for path in paths:
        try:
            arrays.append((path, prepare(path, how)))  # type: ignore[no-untyped-call]
        except Exception:  # Pillow raises many kinds on damaged files
            hint = "give a JPEG, PNG, WebP, BMP, TIFF or GIF"
            broken.append(DataError(f"{path}: the image cannot be decoded", hint=hint))
    if not arrays:
        raise broken[0]
    return arrays, broken
