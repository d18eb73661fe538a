"""Image files that CSV files name, with their labels: one file per split, or one with a column that says the split."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.data.readers.folder import ImagePaths
from edgekd.data.readers.images import ImageDecoder
from edgekd.data.readers.layout import SPLIT_WORDS, files_of, leads_out
from edgekd.data.sources import SPLITS, CsvSettings, Split
from edgekd.errors import ConfigError, DataError
from edgekd.files import sha256_json
from edgekd.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.data.labels import TextLabels

LARGEST_CSV_BYTES = 1 << 30
_HINT = "give a .csv file with a header, or a folder with train.csv"


@dataclass
class _Part:
    """The rows of one split: paths from the folder on, and texts of the labels."""

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


class CsvReader:
    """Rows in the order of the file. Paths start at the folder of the CSV file, and stay inside unless allowed."""

    input_names = ("image",)

    def __init__(self, settings: CsvSettings, root: Path, decoder: ImageDecoder) -> None:
        self._settings, self._root = settings, root
        self._folder = root if root.is_dir() else root.parent
        self._tables = _tables(root)
        self.decoder = decoder
        self.target_names = ("label",) if settings.label is not None else ()

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(self._images)

    def check(self) -> None:
        if "train" not in self._tables:
            raise ConfigError(f"data.csv.path: {self._root} holds no train.csv", hint=_HINT)
        if self._settings.split is not None and (len(self._tables) > 1 or self._root.is_dir()):
            raise ConfigError("data.csv.split: is for one .csv file", hint="remove `split:`, or give the file as path")
        for path in self._tables.values():
            if not path.is_file():
                raise ConfigError(f"data.csv.path: {path} does not exist", hint=_HINT)
            header = header_of(path)
            for option in ("image", "label", "split"):
                column = getattr(self._settings, option)
                if column is not None and column not in header:
                    raise ConfigError(
                        f"data.csv.{option}: {path} has no column {column!r}", hint=did_you_mean(column, header)
                    )
        if self._settings.split is not None and "train" not in self._images:
            raise ConfigError(f"data.csv.split: {self._root} has no row of train", hint="say `train` in its rows")

    def files(self, split: Split | None = None) -> dict[str, Sequence[Path]]:
        # One file may hold the rows of all splits: of one split its rows count (`identity`), not the file.
        tables = self._tables.values() if split is None else ()
        found: dict[str, Sequence[Path]] = {path.name: (path,) for path in tables}
        for of, images in self._images.items():
            if split not in (None, of):
                continue
            there = (path for path in images.below() if os.path.isfile(self._folder / path))
            found[f"images of {of}"] = ImagePaths.of(self._folder, there)
        return {name: paths for name, paths in found.items() if paths}

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        named = {name: getattr(self._settings, name) for name in ("image", "label", "split")}
        rows = {} if split is None else {"rows": sha256_json(vars(self._parts[split]))}
        return {**named, **rows, **self.decoder.identity()}

    def rows(self, split: Split) -> int:
        return len(self._images[split])

    def targets(self, split: Split) -> dict[str, Tensor]:
        return {} if self._settings.label is None else {"label": self._labels.target(split)}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        import torch

        picked = self._images[split].pick(rows.numpy())
        return {"image": torch.from_numpy(self.decoder.decode(picked, len(picked)))}

    def names(self, target: str) -> tuple[str, ...] | None:
        return self._labels.names

    def encoded(self, split: Split, store: Store, digests: Mapping[str, str]) -> ImagePaths:
        return self._images[split]

    def each(self, split: Split) -> Iterator[tuple[object, Path]]:
        return ((path, path) for path in self._images[split])

    @cached_property
    def _labels(self) -> TextLabels:
        from edgekd.data.labels import TextLabels

        return TextLabels(lambda split: self._parts[split].labels)

    @cached_property
    def _images(self) -> dict[Split, ImagePaths]:
        return {split: ImagePaths.of(self._folder, part.paths) for split, part in self._parts.items()}

    @cached_property
    def _parts(self) -> dict[Split, _Part]:
        found: dict[Split, _Part] = {}
        for split, path in self._tables.items():
            self._read(split, path, found)
        return {split: found[split] for split in SPLITS if split in found}

    def _read(self, split: Split, path: Path, found: dict[Split, _Part]) -> None:
        """Add the rows of a file; with a column that says the split, to the split that it says."""
        inside = _Inside(self._folder)
        with _rows(path) as rows:
            header = next(rows, [])
            image, label, part = (_place(header, getattr(self._settings, n)) for n in ("image", "label", "split"))
            for number, row in enumerate(rows, start=1):
                where = f"{path} row {number}"
                if len(row) != len(header):
                    raise DataError(
                        f"{where}: {len(row)} fields, the header has {len(header)}", hint="quote fields with commas"
                    )
                if part is not None:
                    split = _split(row[part], where)
                into = found.setdefault(split, _Part())
                into.paths.append(self._checked(row[image or 0], where, inside))
                if label is not None:
                    into.labels.append(sys.intern(row[label].strip()))
        found.setdefault(split, _Part())

    def _checked(self, path: str, where: str, inside: _Inside) -> str:
        if not path or "\0" in path:
            raise DataError(f"{where}: names no file", hint="remove the row, or give it a path")
        if not self._settings.outside and not inside.holds(path):
            raise DataError(
                f"{where}: the path {path[:200]!r} leads out of {self._folder}",
                hint="mend it, or allow such paths: `csv: {path: .., outside: true}`",
            )
        return path


class _Inside:
    """Tells which relative paths stay inside of a folder, links followed; each folder is looked at once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._root = str(folder), os.path.realpath(folder)
        self._known: dict[str, bool] = {}

    def holds(self, path: str) -> bool:
        """Whether a path stays inside."""
        folder, name = os.path.split(path)
        if folder not in self._known:
            self._known[folder] = not leads_out(os.path.join(self._folder, folder), self._root)
        whole = os.path.join(self._folder, path)
        linked = name in ("", ".", "..") or os.path.islink(whole)
        return self._known[folder] and not (linked and leads_out(whole, self._root))


def header_of(path: Path) -> list[str]:
    """Names of the columns of a CSV file. Raises DataError."""
    with _rows(path) as rows:
        return next(rows, [])


@contextlib.contextmanager
def _rows(path: Path) -> Iterator[Iterator[list[str]]]:
    """The rows of a CSV file as lists of texts, the header first; empty lines are left out.

    Raises:
        DataError: it is not UTF-8, not CSV, or larger than `LARGEST_CSV_BYTES`.
    """
    try:
        if path.stat().st_size > LARGEST_CSV_BYTES:
            raise DataError(f"{path}: larger than {LARGEST_CSV_BYTES >> 20} MiB", hint="split it")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            yield (row for row in csv.reader(stream, delimiter=delimiter, strict=True) if row)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text", hint="save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: is not readable CSV: {error}", hint="check its quotes") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="check the file and its rights") from None


def _tables(root: Path) -> dict[Split, Path]:
    if not root.is_dir():
        if root.suffix.lower() not in (".csv", ".tsv"):
            raise ConfigError(f"data.csv.path: {root} is no folder and no .csv file", hint=_HINT)
        return {"train": root}
    found = files_of(root, ".csv") or files_of(root, ".tsv")
    for split, paths in found.items():
        if len(paths) > 1:
            raise ConfigError(f"data.csv.path: {root} holds {len(paths)} files of {split}", hint="join them to one")
    return {split: paths[0] for split, paths in found.items()}


def _place(header: Sequence[str], column: str | None) -> int | None:
    return None if column is None else list(header).index(column)


def _split(word: str, where: str) -> Split:
    split = SPLIT_WORDS.get(word.strip().lower())
    if split is None:
        raise DataError(f"{where}: {word[:60]!r} is no split", hint="train, validation (or val) and test are known")
    return split
