"""Images and labels in tar files, in the layout of WebDataset. Nothing is unpacked: images are read where they lie.

Consecutive members of one name up to the first dot are a sample; what follows the dot says what a member holds.
Only regular members count: a link or a device in an archive is never followed.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from edgekd.data.readers.images import IMAGE_SUFFIXES, LARGEST_ENCODED_BYTES, ImageDecoder
from edgekd.data.readers.layout import files_of
from edgekd.data.sources import Split, WebDatasetSettings
from edgekd.errors import ConfigError, DataError
from edgekd.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from edgekd.data.labels import TextLabels

_HINT = "give a folder with train*.tar, or one .tar file"
_LARGEST_HEADER_BYTES = 1 << 20
_LARGEST_LABEL_BYTES = 1 << 20
_BLOCK = 512


class WebDatasetReader:
    """Samples in the order of the sorted files, and in them in the order of the members."""

    input_names = ("image",)

    def __init__(self, settings: WebDatasetSettings, root: Path, decoder: ImageDecoder) -> None:
        self._settings, self._root = settings, root
        self._files = files_of(root, ".tar", loose=True)
        self.splits = tuple(self._files)
        self.decoder = decoder
        self.target_names = ("label",) if settings.label is not None else ()
        self._known: dict[Split, _Samples] = {}

    def check(self) -> None:
        if not self._root.is_dir() and self._root.suffix.lower() != ".tar":
            raise ConfigError(f"data.webdataset.path: {self._root} is no folder and no .tar file", hint=_HINT)
        if "train" not in self._files:
            raise ConfigError(f"data.webdataset.path: {self._root} holds no train*.tar", hint=_HINT)
        for path in (path for files in self._files.values() for path in files):
            if not path.is_file():
                raise ConfigError(f"data.webdataset.path: {path} does not exist", hint=_HINT)

    def files(self, split: Split | None = None) -> dict[str, Sequence[Path]]:
        parts = [files for of, files in self._files.items() if split in (None, of)]
        return {path.name: (path,) for files in parts for path in files}

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        return {"image": self._settings.image, "label": self._settings.label, **self.decoder.identity()}

    def rows(self, split: Split) -> int:
        return len(self._samples(split))

    def targets(self, split: Split) -> dict[str, Tensor]:
        return {} if self._settings.label is None else {"label": self._labels.target(split)}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        import torch

        picked = self._samples(split).pick(rows.numpy())
        return {"image": torch.from_numpy(self.decoder.decode(picked, len(picked)))}

    def names(self, target: str) -> tuple[str, ...] | None:
        return self._labels.names

    def encoded(self, split: Split, store: Store, digests: Mapping[str, str]) -> _Samples:
        return self._samples(split)

    def each(self, split: Split) -> Iterator[tuple[object, bytes | None]]:
        import numpy as np

        return iter(self._samples(split).pick(np.arange(self.rows(split))))

    @cached_property
    def _labels(self) -> TextLabels:
        from edgekd.data.labels import TextLabels

        return TextLabels(lambda split: self._samples(split).labels)

    def _samples(self, split: Split) -> _Samples:
        if split not in self._known:
            found = _Samples([str(path) for path in self._files[split]])
            for number, path in enumerate(self._files[split]):
                for name, members in _samples_of(path):
                    self._add(found, number, f"{path}: {name}", members)
            self._known[split] = found
        return self._known[split]

    def _add(self, found: _Samples, file: int, where: str, members: Mapping[str, _Member]) -> None:
        extension = self._settings.image
        if extension is None:
            extension = next((e for e in members if f".{e.rpartition('.')[2]}" in IMAGE_SUFFIXES), None)
        image = members.get(extension.lower()) if extension is not None else None
        found.file.append(file)
        found.start.append(image.start if image else 0)
        found.size.append(image.size if image else -1)
        if self._settings.label is not None:
            found.labels.append(sys.intern(self._label(where, members, found.paths[file])))

    def _label(self, where: str, members: Mapping[str, _Member], path: str) -> str:
        extension, _, key = (self._settings.label or "").partition(".")
        whole = self._settings.label if extension != "json" else "json"
        member = members.get(str(whole).lower())
        if member is None:
            raise DataError(
                f"{where}: has no .{whole}", hint="name the extension of the labels as `label:`, null without labels"
            )
        try:
            text = _content(path, member, _LARGEST_LABEL_BYTES).decode().strip()
            if extension != "json" or not key:
                return text
            value = json.loads(text)[key]
        except (KeyError, TypeError):
            raise DataError(f"{where}: its .json has no field {key!r}", hint="check `label:`") from None
        except (ValueError, RecursionError):
            raise DataError(f"{where}: its .{whole} is not readable text", hint="write it again") from None
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        raise DataError(f"{where}: the field {key!r} is neither a text nor a number", hint="check `label:`")


@dataclass(frozen=True)
class _Member:
    """Where the content of a member lies."""

    start: int
    size: int


@dataclass
class _Samples:
    """The samples of a split: where each image lies (its size is -1 if there is none), and the texts of labels."""

    paths: list[str]
    file: array[int] = field(default_factory=lambda: array("q"))
    start: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.file)

    def pick(self, rows: NDArray[Any]) -> _Picked:
        """Some samples' images, int64 (M,): cheap to pickle, read when they are iterated."""
        import numpy as np

        columns = (np.frombuffer(column, np.int64)[rows] for column in (self.file, self.start, self.size))
        return _Picked(self.paths, *columns)


@dataclass(frozen=True)
class _Picked:
    """Names and contents of some images; all arrays are int64 (M,)."""

    paths: list[str]
    file: NDArray[Any]
    start: NDArray[Any]
    size: NDArray[Any]

    def __len__(self) -> int:
        return len(self.file)

    def __iter__(self) -> Iterator[tuple[object, bytes | None]]:
        for file, start, size in zip(self.file.tolist(), self.start.tolist(), self.size.tolist(), strict=True):
            path, member = self.paths[file], _Member(start, size)
            # One byte more than is allowed is enough to see that it is too large.
            yield _Name(path, start), _content(path, member, LARGEST_ENCODED_BYTES + 1) if size >= 0 else None


@dataclass(frozen=True)
class _Name:
    """A member in words, read from its header when a message needs it."""

    path: str
    start: int

    def __str__(self) -> str:
        if not self.start:
            return f"{self.path}: a sample without an image"
        try:
            with open(self.path, "rb") as stream:
                header = os.pread(stream.fileno(), _BLOCK, self.start - _BLOCK)
            return f"{self.path}: {tarfile.TarInfo.frombuf(header, 'utf-8', 'replace').name}"
        except (OSError, tarfile.TarError):
            return f"{self.path} at byte {self.start}"


def first_extensions(path: Path) -> tuple[str, ...]:
    """What the first sample of a tar file holds, by extension. Raises DataError."""
    return next((tuple(members) for _, members in _samples_of(path)), ())


def _samples_of(path: Path) -> Iterator[tuple[str, dict[str, _Member]]]:
    """The samples of a tar file: their names, and their members by extension."""
    name, found = "", dict[str, _Member]()
    for member, place in _members(path):
        folder, slash, last = member.rpartition("/")
        if last.startswith("."):
            continue
        stem, _, extension = last.partition(".")
        extension = extension.lower()
        sample = folder + slash + stem
        if found and (sample != name or extension in found):
            yield name, found
            found = {}
        name = sample
        found[extension] = place
    if found:
        yield name, found


def _members(path: Path) -> Iterator[tuple[str, _Member]]:
    """Names and places of the regular members. Raises DataError where the archive is damaged."""
    try:
        with (
            path.open("rb") as stream,
            tarfile.open(fileobj=cast(IO[bytes], _Guarded(stream)), mode="r:", errors="replace") as archive,
        ):
            size, last = path.stat().st_size, -1
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would remember every one
                if member.offset <= last or not 0 <= member.size <= size - member.offset_data:
                    raise tarfile.ReadError("a member does not lie inside of it")
                last = member.offset
                if member.isreg() and not member.issparse():
                    yield member.name, _Member(member.offset_data, member.size)
            if last < 0:
                raise tarfile.ReadError("it is empty")
    except (tarfile.TarError, OSError, ValueError, OverflowError, LookupError, EOFError, TypeError) as error:
        raise DataError(
            f"{path}: is not a readable tar file: {error}",
            hint="write it again; one that is compressed, unpack with gunzip",
        ) from None


class _Guarded(io.RawIOBase):
    """A file that gives at most `_LARGEST_HEADER_BYTES` at once: a header may ask for any number of bytes."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """Raises tarfile.ReadError for more."""
        if not 0 <= size <= _LARGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of more than {_LARGEST_HEADER_BYTES} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _content(path: str, member: _Member, most: int) -> bytes:
    """What a member holds, at most so many bytes of it. Raises DataError."""
    try:
        with open(path, "rb") as stream:
            return os.pread(stream.fileno(), min(member.size, most), member.start)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="check the file and its rights") from None
