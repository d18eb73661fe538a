"""edgekd predict BUILD IMAGE..: what a build says of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
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
) -> None:
    """Show what a build says of images: classes with their probabilities."""
    from edgekd.cli.loading import load_build
    from edgekd.export.card import answers, read_card, takes_an_image
    from edgekd.runtimes.protocol import infer
    from edgekd.runtimes.registry import runtime

    folder, card = read_card(build)
    engine = runtime(card["runtime"])
    if not takes_an_image(card):
        raise ConfigError(f"{build}: takes no single image: {', '.join(card['inputs'])}", hint="feed it by its engine")
    ((name, how),) = card["inputs"].items()
    arrays = [(path, _prepared(path, how)) for path in images]
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
        return
    for row in rows:
        typer.echo(f"{row['image']}  {_words(row)}")


def _words(row: dict[str, Any]) -> str:
    if "values" in row:
        return f"{row['output']} {row['values']}"
    return "  ".join(f"{one['class']} {one['probability']:.4f}" for one in row["classes"])


def _prepared(path: Path, how: dict[str, Any]) -> np.ndarray[Any, Any]:
    from edgekd.export.predict import prepare

    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "there is no such file"
        raise ConfigError(f"{path}: {kind}", hint="give image files, e.g. images/*.jpg")
    try:
        found: np.ndarray[Any, Any] = prepare(path, how)  # type: ignore[no-untyped-call]
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise DataError(
            f"{path}: the image cannot be decoded", hint="give a JPEG, PNG, WebP, BMP, TIFF or GIF"
        ) from error
    return found
