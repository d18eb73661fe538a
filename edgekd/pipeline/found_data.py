"""What lies at a path that is given as data: which source reads it, and what has to be known to choose by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config import validate
from edgekd.data import DataSettings
from edgekd.data.sources import IMAGE_SOURCES
from edgekd.errors import ConfigError
from edgekd.files import from_here

if TYPE_CHECKING:
    from edgekd.data.source import Data

_LOOKED_AT = 256  # images whose sizes are compared before all of them are decoded


@dataclass(frozen=True)
class Found:
    """One source of data. `shape`: height and width of its images; `size`: those that they are resized to, if any."""

    source: str
    options: Mapping[str, Any]
    words: str
    labelled: bool
    train: int
    classes: int | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    shape: tuple[int, int] | None = None


def find_data(
    path: Path, *, size: tuple[int, int] | None = None, channels: int | None = None, seed: int = 0, image: str = "",
    label: str = "",
) -> Found:  # fmt: skip
    """Look at what lies at a path, without decoding more than a few headers of images.

    Raises:
        ConfigError: nothing that can be read lies there, or its images differ in size and no `size` is given.
        DataError: a file is not what its name says.
    """
    source, options = source_at(path, image, label)
    shape = size
    if source in IMAGE_SOURCES:
        shape = size or _shape(path, source, options)
    elif size is not None or channels is not None:
        given = "--size" if size is not None else "--channels"
        raise ConfigError(f"{given} is for images, and {path} holds arrays", hint=f"leave {given} out")
    data = open_found(source, options, size=size, channels=channels, seed=seed)
    counts, classes = data.counts(), data.classes()
    known = next(iter(classes.values())).count if classes else None
    parts = [f"{counts[split]:,} {split}" for split in ("train", "validation", "test") if counts.get(split)]
    words = ", ".join([*parts, f"{known} classes" if known else "no labels" if not data.target_names else "values"])
    return Found(source, options, words, bool(data.target_names), counts["train"], known, size, channels, shape)


def open_found(
    source: str, options: Mapping[str, Any], *, size: Sequence[int] | None, channels: int | None, seed: int, **more: Any
) -> Data:
    """The data of a source, opened. Raises ConfigError and DataError as `open_data`."""
    from edgekd.data.source import open_data

    given = {source: dict(options), "size": list(size) if size else None, **more}
    given |= {} if channels is None else {"channels": channels}
    settings, problems = validate(DataSettings, given)
    if settings is None:
        raise ConfigError(f"--data: {problems[0].message}", hint=problems[0].hint)
    try:
        return open_data(settings, base=Path.cwd(), seed=seed)
    except ConfigError as error:
        address, path = f"data.{source}.path: ", str(options.get("path", ""))
        if not error.message.startswith(address):
            raise
        said = error.message.removeprefix(address)
        said = said.replace(path, from_here(Path(path)), 1) if path else said
        raise ConfigError(f"--data {said}", hint=error.hint) from None


def source_at(path: Path, image: str, label: str) -> tuple[str, dict[str, Any]]:
    """The source that reads a path, and its options, as `edgekd data check` understands it; `digits` is a word.

    Raises:
        ConfigError: nothing that can be read lies there.
        DataError: a file is not what its name says.
    """
    from edgekd.data.recognise import recognise

    if str(path) == "digits" and not path.exists():
        return "digits", {}
    try:
        block = recognise(path, image=image or None, label=label or None)
    except ConfigError as error:
        raise ConfigError(f"--data {error.message}", hint=error.hint) from None
    ((source, options),) = block.items()
    options = {key: value for key, value in options.items() if value is not None}
    return source, {**options, "path": str(path.absolute())}


def _shape(path: Path, source: str, options: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images of a folder, if those that are looked at share them; None of other sources.

    Raises:
        ConfigError: they differ.
    """
    if source != "folder":
        return None
    from PIL import Image

    from edgekd.data.readers.images import IMAGE_SUFFIXES

    sizes: dict[tuple[int, int], Path] = {}
    images = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    for file in islice(images, _LOOKED_AT):
        try:
            with Image.open(file) as opened:
                sizes.setdefault((opened.height, opened.width), file)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # who decodes it says so
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise ConfigError(
            f"--data {path}: images differ in size: {first.name} is {a[0]}x{a[1]}, {second.name} is {b[0]}x{b[1]}",
            hint="give --size HEIGHTxWIDTH, the size that the network was trained with, e.g. --size 224x224",
        )
    return next(iter(sizes), None)
