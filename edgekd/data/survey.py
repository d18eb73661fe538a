"""A look through a whole data set: counts, sizes, kinds, statistics, and what a run would refuse."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd.data.findings import Survey, Thumbnail
from edgekd.data.fingerprint import Memo
from edgekd.data.readers import ImageReader, Reader, open_reader
from edgekd.data.readers.folder import FolderReader
from edgekd.data.readers.images import DAMAGED, LARGEST_ENCODED_BYTES, BrokenImageError, Encoded
from edgekd.data.readers.sound import Broken
from edgekd.data.settings import DataSettings
from edgekd.data.sources import Split
from edgekd.data.splits import split_sizes
from edgekd.errors import DataError

THUMBNAIL_PIXELS = 96
_ORIENTATION = 0x0112  # the EXIF tag


def survey(settings: DataSettings, base: Path, *, thumbnails: int = 0) -> Survey:
    """Read a data set from beginning to end.

    Args:
        base: folder that relative paths start from.
        thumbnails: how many to make at most, spread over splits and classes.

    Raises:
        ConfigError: a path, a file, a column or an array is missing.
        DataError: a file is not what its name says.
    """
    everything = settings.model_copy(update={"skip_broken": 0.0})
    reader = open_reader(everything, base, everything, Memo(None))
    found = Survey(settings.source, resized=settings.size is not None)
    labels = {split: _labels(found, reader, split, settings.classes) for split in reader.splits}
    look: Any = _Pictures(found, reader) if isinstance(reader, ImageReader) else _Arrays(found, reader)
    for split in reader.splits:
        found.samples[split] = reader.rows(split)
        wanted = _spread(labels[split], found.samples[split], thumbnails // len(reader.splits))
        look.split(split, labels[split], wanted)
    look.end()
    if isinstance(reader, FolderReader):
        found.others = [str(path) for path in reader.others()]
    _judge(found, settings, reader)
    return found


def _labels(found: Survey, reader: Reader, split: Split, classes: int | None) -> list[str] | None:
    """Count the classes of a split; the classes of its samples in words, if there is one target of them."""
    import torch

    from edgekd.data.labels import check_labels

    try:
        targets = reader.targets(split)
        for name, values in targets.items():
            if not values.is_floating_point():
                seen = torch.unique(reader.targets("train")[name]) if split != "train" else None
                check_labels(values, split, name, classes=classes, seen=seen)
    except DataError as error:
        found.problems.append((error.message, error.hint or ""))
        return None
    words = None
    for name, values in targets.items():
        if values.is_floating_point() or values.dim() > 1:
            continue
        names = reader.names(name)
        counts = Counter(values.tolist())
        texts = {i: names[i] if names is not None and 0 <= i < len(names) else str(i) for i in counts}
        known = dict.fromkeys(names or found.classes.get("train", {}).get(name, {}), 0)
        ordered = {texts[i]: counts[i] for i in sorted(counts)}
        found.classes.setdefault(split, {})[name] = {**known, **ordered}
        words = [texts[i] for i in values.tolist()] if len(targets) == 1 else None
    return words


def _spread(labels: list[str] | None, count: int, most: int) -> set[int]:
    """At most so many rows, evenly over the classes, and over each class."""
    by_class: dict[str, list[int]] = {}
    for row in range(count):
        by_class.setdefault(labels[row] if labels else "", []).append(row)
    each = max(1, most // max(1, len(by_class)))
    chosen: list[int] = []
    for rows in by_class.values():
        count = min(each, len(rows))
        chosen += [rows[i * len(rows) // count] for i in range(count)]
    return set(chosen[:most])


class _Contents:
    """Samples by content: which were there before."""

    def __init__(self, found: Survey) -> None:
        self._found = found
        self._first: dict[bytes, tuple[str, Split, str | None]] = {}

    def see(self, content: bytes, name: str, split: Split, label: str | None) -> None:
        """Take note of a sample."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._first:
            self._first[digest] = (name, split, label)
            return
        other, theirs, their_label = self._first[digest]
        self._found.copies.append((name, split, other, theirs))
        if label is not None and their_label is not None and label != their_label:
            self._found.conflicts.append((name, other))


class _Pictures:
    """Looks at a source of encoded images."""

    def __init__(self, found: Survey, reader: ImageReader) -> None:
        self._found, self._reader = found, reader
        self._contents = _Contents(found)
        self._pixels, self._sums, self._squares = 0, 0, 0
        self._shapes: set[tuple[int, int]] = set()
        found.pictures = {name: Counter() for name in ("format", "mode", "size", "notes")}

    def split(self, split: Split, labels: list[str] | None, wanted: set[int]) -> None:
        """Look at all images of a split, and make thumbnails of the wanted ones."""
        decoder = self._reader.decoder
        broken = self._found.broken.setdefault(split, [])
        with decoder.opening():
            for row, (name, encoded) in enumerate(self._reader.each(split)):
                label = labels[row] if labels else None
                content = _content(encoded)
                if isinstance(content, bytes):
                    self._contents.see(content, str(name), split, label)
                try:
                    with decoder.opened(name, content) as image:
                        self._facts(image)
                        seen = decoder.prepared(name, image)
                        seen = seen.copy() if seen is image else seen
                        self._note(image)
                except BrokenImageError as error:
                    broken.append(Broken(row, str(name), error.why))
                    continue
                self._measure(np.asarray(seen))
                if row in wanted:
                    self._found.thumbnails.append(Thumbnail(split, label or "", Path(str(name)).name, _jpeg(seen)))

    def end(self) -> None:
        """Work out what needs all images."""
        if self._pixels:
            mean = np.asarray(self._sums) / self._pixels
            std = np.sqrt(np.maximum(np.asarray(self._squares) / self._pixels - mean**2, 0))
            self._found.channels = {
                "mean": [round(float(m) / 255, 4) for m in mean],
                "std": [round(float(s) / 255, 4) for s in std],
            }
        if len(self._shapes) > 1 and not self._found.resized:
            height, width = self._found.sizes()["middle"]
            mend = (
                f"give --size {height}x{width}, or the size of your network; in a file `data.size: [{height}, {width}]`"
            )
            self._found.problems.append(("images differ in size, and no size is given to resize them to", mend))
        rules = self._reader.decoder.rules
        self._found.inputs = {"image": f"uint8, {rules.channels} channels"}

    def _facts(self, image: Any) -> None:
        orientation = None
        with contextlib.suppress(*DAMAGED):  # metadata that is damaged says nothing
            orientation = image.getexif().get(_ORIENTATION)
        height, width = image.height, image.width
        pictures = self._found.pictures
        pictures["format"][image.format] += 1
        pictures["mode"][image.mode] += 1
        pictures["size"][(width, height) if orientation in (5, 6, 7, 8) else (height, width)] += 1
        if orientation in range(2, 9):
            pictures["notes"]["turned by EXIF"] += 1

    def _note(self, image: Any) -> None:
        """Asked last: it looks at the second frame."""
        with contextlib.suppress(*DAMAGED):
            if image.has_transparency_data:
                self._found.pictures["notes"]["with transparency"] += 1
            if getattr(image, "is_animated", False):
                self._found.pictures["notes"]["of several frames, the first taken"] += 1

    def _measure(self, pixels: NDArray[np.uint8]) -> None:
        self._shapes.add((pixels.shape[0], pixels.shape[1]))
        values = pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1).astype(np.int64)
        self._pixels += len(values)
        self._sums = self._sums + values.sum(axis=0)
        self._squares = self._squares + np.square(values).sum(axis=0)


class _Arrays:
    """Looks at a source of arrays."""

    def __init__(self, found: Survey, reader: Reader) -> None:
        self._found, self._reader = found, reader
        self._contents = _Contents(found)

    def split(self, split: Split, labels: list[str] | None, wanted: set[int]) -> None:
        """Look at all rows of a split; images among them give thumbnails."""
        import torch

        count = self._reader.rows(split)
        inputs = self._reader.inputs(split, torch.arange(count))
        for row in range(count):
            content = b"".join(values[row].numpy().tobytes() for values in inputs.values())
            self._contents.see(content, f"{split} row {row}", split, labels[row] if labels else None)
        if split == "train":
            self._measure(inputs)
        for name, values in inputs.items():
            if values.dtype == torch.uint8 and values.dim() == 4 and values.shape[1] in (1, 3):
                for row in sorted(wanted):
                    label = labels[row] if labels else ""
                    jpeg = _jpeg(_picture(values[row].numpy()))
                    self._found.thumbnails.append(Thumbnail(split, label, f"{name} {row}", jpeg))

    def end(self) -> None:
        """Nothing is left."""

    def _measure(self, inputs: Mapping[str, Any]) -> None:
        from edgekd.data.table import measure

        for name, values in inputs.items():
            kind = str(values.dtype).removeprefix("torch.")
            self._found.inputs[name] = f"{kind}, a row of shape {tuple(values.shape[1:])}"
            measured = measure(values)
            if len(measured.mean) <= 16:
                self._found.channels |= {
                    f"{name} mean": [round(m, 4) for m in measured.mean],
                    f"{name} std": [round(s, 4) for s in measured.std],
                }


def _judge(found: Survey, settings: DataSettings, reader: Reader) -> None:
    """What a run would refuse."""
    sizes = dict(found.samples)
    for split, rows in found.broken.items():
        count = found.samples[split]
        if rows and len(rows) > settings.skip_broken * count:
            share = -(-len(rows) * 1000 // count) / 1000
            mend = f"replace or remove them, or leave them out: `data.skip_broken: {max(share, 0.001):g}`"
            found.problems.append((f"{len(rows)} of {count} images of {split} are broken", mend))
        sizes[split] -= len(rows)
    for split, count in sizes.items():
        if not count:
            found.problems.append((f"the {split} split is empty", "add samples, or remove its files"))
    shares: dict[Split, float] = {"test": settings.test, "validation": settings.validation}
    try:
        drawn = split_sizes(sizes["train"], {s: share for s, share in shares.items() if s not in reader.splits})
        found.in_a_run = {**sizes, **drawn}
    except DataError as error:
        found.problems.append((error.message, error.hint or ""))


def _content(encoded: Encoded) -> Encoded:
    """The bytes of a file, if it is one of an allowed size; the decoder says what is wrong with others."""
    if isinstance(encoded, Path):
        with contextlib.suppress(OSError):
            if encoded.is_file() and encoded.stat().st_size <= LARGEST_ENCODED_BYTES:
                return encoded.read_bytes()
    return encoded


def _picture(values: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))


def _jpeg(image: Any) -> bytes:
    small = image.copy()
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return stream.getvalue()
