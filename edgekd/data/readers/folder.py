"""Image files in folders: one folder per split and class, one per class, or no classes at all."""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from edgekd.data.readers.images import IMAGE_SUFFIXES, ImageDecoder
from edgekd.data.readers.layout import leads_out, split_folders
from edgekd.data.sources import FolderSettings, Split
from edgekd.errors import ConfigError
from edgekd.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_HINT = "lay it out as train/<class>/*.jpg and test/<class>/*.jpg, as <class>/*.jpg, or as *.jpg without labels"


class FolderReader:
    """Images below `root`, in the order of their paths. Classes are the sorted names of train's folders."""

    input_names = ("image",)

    def __init__(self, settings: FolderSettings, root: Path, decoder: ImageDecoder) -> None:
        self._root = root
        self._outside = settings.outside
        self.decoder = decoder

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        return tuple(self._images)

    @cached_property
    def target_names(self) -> tuple[str, ...]:
        return ("label",) if self._labelled else ()

    def check(self) -> None:
        if not self._root.is_dir():
            raise ConfigError(f"data.folder.path: {self._root} is not a folder", hint=_HINT)
        if not self._images["train"]:
            raise ConfigError(f"data.folder.path: {self._folders['train']} holds no images", hint=_HINT)
        self._labelled  # noqa: B018 - a layout that is neither of the three is refused here

    def files(self, split: Split | None = None) -> dict[str, Sequence[Path]]:
        parts = [images for of, images in self._images.items() if split in (None, of)]
        groups = (group for images in parts for group in images.by_folder())
        return {group[0].relative_to(self._root).as_posix(): group for group in groups}

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        return self.decoder.identity()

    def rows(self, split: Split) -> int:
        return len(self._images[split])

    def targets(self, split: Split) -> dict[str, Tensor]:
        if not self._labelled:
            return {}
        import numpy as np

        from edgekd.data.labels import index_codes, target_tensor

        runs = self._classes(split)
        codes = np.repeat(np.arange(len(runs)), [count for _, count in runs])
        return {"label": target_tensor(index_codes(codes, [n for n, _ in runs], self.names("label"), split), split)}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        import torch

        picked = self._images[split].pick(rows.numpy())
        return {"image": torch.from_numpy(self.decoder.decode(picked, len(picked)))}

    def names(self, target: str) -> tuple[str, ...]:
        return tuple(sorted({name for name, _ in self._classes("train")}))

    def encoded(self, split: Split, store: Store, digests: Mapping[str, str]) -> ImagePaths:
        return self._images[split]

    def each(self, split: Split) -> Iterator[tuple[object, Path]]:
        return ((path, path) for path in self._images[split])

    def others(self) -> list[Path]:
        """Files that are not called like images, hidden ones aside."""
        folders = self._folders.values()
        return [path for folder in folders for path in _Below(folder, self._root, outside=self._outside).others()]

    def _classes(self, split: Split) -> list[tuple[str, int]]:
        """The classes of a split in the order of its images, each with the number of images that follow one another."""
        names = (path.partition("/")[0] for path in self._images[split].below())
        return [(name, sum(1 for _ in run)) for name, run in itertools.groupby(names)]

    @cached_property
    def _folders(self) -> dict[Split, Path]:
        found = split_folders(self._root, "data.folder.path")
        if found and "train" not in found:
            there = " and ".join(path.name for path in found.values())
            raise ConfigError(f"data.folder.path: {self._root} holds {there} but no train folder", hint=_HINT)
        return found or {"train": self._root}

    @cached_property
    def _images(self) -> dict[Split, ImagePaths]:
        try:
            return {
                split: ImagePaths.of(folder, _Below(folder, self._root, outside=self._outside).images())
                for split, folder in self._folders.items()
            }
        except OSError as error:
            raise ConfigError(
                f"data.folder.path: {error.filename} cannot be read: {error.strerror}", hint="check its rights"
            ) from None

    @cached_property
    def _labelled(self) -> bool:
        depths = {split: {"/" in path for path in images.below()} for split, images in self._images.items()}
        if len(set().union(*depths.values())) > 1:
            raise ConfigError(
                f"data.folder.path: {self._root} holds images both in and beside class folders", hint=_HINT
            )
        return depths["train"] == {True}


class ImagePaths(Sequence[Path]):
    """Paths of images below a folder as one text and the places where each ends: 1,000,000 `Path` would take 0.5 GB."""

    def __init__(self, root: Path, text: bytes, ends: array[int], start: int, stop: int) -> None:
        self._root, self._text, self._ends = root, text, ends
        self._start, self._stop = start, stop

    @classmethod
    def of(cls, folder: Path, paths: Iterable[str]) -> ImagePaths:
        """Paths from a folder on, with slashes, in this order."""
        text, ends = bytearray(), array("q")
        for path in paths:
            text += os.fsencode(path)
            ends.append(len(text))
        return cls(folder, bytes(text), ends, 0, len(ends))

    def __len__(self) -> int:
        return self._stop - self._start

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> ImagePaths: ...
    def __getitem__(self, index: int | slice) -> Path | ImagePaths:
        places = range(self._start, self._stop)[index]
        if isinstance(places, range):
            assert places.step == 1
            return ImagePaths(self._root, self._text, self._ends, places.start, places.stop)
        return self._root / self._below(places)

    def below(self) -> Iterator[str]:
        """The paths from the folder on, with slashes."""
        return map(self._below, range(self._start, self._stop))

    def pick(self, rows: NDArray[Any]) -> list[tuple[str, Path]]:
        """Names and paths of some images, int64 (M,)."""
        return [(str(path), path) for path in (self[row] for row in rows.tolist())]

    def by_folder(self) -> Iterator[ImagePaths]:
        """Parts whose images lie in one folder and follow one another."""
        start = 0
        for _, run in itertools.groupby(path.rpartition("/")[0] for path in self.below()):
            stop = start + sum(1 for _ in run)
            yield self[start:stop]
            start = stop

    def _below(self, place: int) -> str:
        return os.fsdecode(self._text[self._ends[place - 1] if place else 0 : self._ends[place]])


class _Below:
    """What lies below a folder at any depth, sorted by path, without hidden files and folders.

    Args:
        outside: whether symbolic links may lead out of `root`.
    """

    def __init__(self, folder: Path, root: Path, *, outside: bool) -> None:
        self._folder, self._outside = folder, outside
        self._root = os.path.realpath(root)

    def images(self) -> Iterator[str]:
        """Paths from the folder on of what is called like an image.

        Raises:
            ConfigError: a link leads out of the root, or to a folder that it lies in.
            OSError: something cannot be read.
        """
        return (path for path in self._all() if _is_image(path))

    def others(self) -> Iterator[Path]:
        """The other files."""
        return (self._folder / path for path in self._all() if not _is_image(path))

    def _all(self) -> Iterator[str]:
        self._check_link(str(self._folder), ())
        return self._walk(str(self._folder), "", ())

    def _walk(self, folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
        above = (*above, os.path.realpath(folder))
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in sorted(seen, key=lambda entry: entry.name):
            is_folder = entry.is_dir()
            if entry.is_symlink() and (is_folder or _is_image(entry.name)):
                self._check_link(entry.path, above)
            if is_folder:
                yield from self._walk(entry.path, f"{prefix}{entry.name}/", above)
            else:
                yield prefix + entry.name

    def _check_link(self, link: str, above: tuple[str, ...]) -> None:
        if os.path.realpath(link) in above:
            raise ConfigError(f"data.folder.path: the link {link} leads to a folder that it lies in", hint="remove it")
        if not self._outside and leads_out(link, self._root):
            raise ConfigError(
                f"data.folder.path: the link {link} leads out of {self._root}",
                hint="remove it, or allow such links: `folder: {path: .., outside: true}`",
            )


def _is_image(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
