"""edgekd new DIR: a commented pipeline file with a tiny network and images, which runs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import ConfigError, UnavailableError

_TEMPLATE = Path(__file__).with_name("template")
_PER_CLASS = {"train": 60, "test": 40}
_FIX = ", overflow_fix: all"  # see runtimes/saturation.py


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or empty.")],
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """Write a commented pipeline file, a tiny network and a thousand images: it runs as it is."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there and not empty", hint="choose a new folder")
    from edgekd.files import write_atomic
    from edgekd.runtimes.saturation import saturates

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise ConfigError(
            f"{folder}: cannot be made: {error.filename}: {error.strerror}", hint="choose a folder that can be made"
        ) from None
    count = _write_images(folder / "images")
    text = (_TEMPLATE / "pipeline.yaml").read_text().replace("FIX", _FIX if saturates() else "")
    write_atomic(folder / "network.py", (_TEMPLATE / "network.py").read_bytes())
    write_atomic(folder / "pipeline.yaml", text)
    if json_:
        print_json({"folder": str(folder), "files": ["pipeline.yaml", "network.py", "images"], "images": count})
    elif not quiet:
        typer.echo(
            f"{folder}: pipeline.yaml, network.py and {count} images; go on: cd {folder} && edgekd run pipeline.yaml"
        )


def _write_images(folder: Path) -> int:
    """scikit-learn's digits as PNG files, grey, 8x8: so many of each class in each split."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UnavailableError("the example's images need scikit-learn", hint="pip install scikit-learn") from None
    import numpy as np
    from PIL import Image

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    count = 0
    for digit in range(10):
        own = pixels[digits.target == digit]
        start = 0
        for split, many in _PER_CLASS.items():
            place = folder / split / str(digit)
            place.mkdir(parents=True)
            for index, image in enumerate(own[start : start + many]):
                Image.fromarray(image).save(place / f"{index:03}.png")
                count += 1
            start += many
    return count
