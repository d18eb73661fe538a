"""Image files in folders: one folder per split and class, one per class, or no classes at all."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.data.readers.images import IMAGE_SUFFIXES, ImageDecoder
from edgekd.data.settings import SPLITS, Split
from edgekd.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_HINT = "lay it out as train/<class>/*.jpg and test/<class>/*.jpg, as <class>/*.jpg, or as *.jpg without labels"


class FolderReader:
    """Images below `root`, in the order of their paths. Classes are the sorted names of train's folders."""

    input_names = ("image",)

    def __init__(self, root: Path, decoder: ImageDecoder) -> None:
        self._root = root
        self._decoder = decoder

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        return tuple(self._paths)

    @cached_property
    def target_names(self) -> tuple[str, ...]:
        return ("label",) if self._labelled else ()

    def check(self) -> None:
        if not self._root.is_dir():
            raise ConfigError(f"data.folder.path: {self._root} is not a folder", hint=_HINT)
        if not self._paths["train"]:
            raise ConfigError(f"data.folder.path: {self._folders['train']} holds no images", hint=_HINT)
        self._labelled  # noqa: B018 - a layout that is neither of the three is refused here

    def files(self) -> dict[str, Path]:
        return {p.relative_to(self._root).as_posix(): p for paths in self._paths.values() for p in paths}

    def identity(self) -> dict[str, Any]:
        return self._decoder.identity()

    def rows(self, split: Split) -> int:
        return len(self._paths[split])

    def targets(self, split: Split) -> dict[str, Tensor]:
        if not self._labelled:
            return {}
        from edgekd.data.labels import index_names, target_tensor

        classes = [path.relative_to(self._folders[split]).parts[0] for path in self._paths[split]]
        return {"label": target_tensor(index_names(classes, self.names("label"), split), split)}

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        paths = [self._paths[split][row] for row in rows.tolist()]
        return {"image": self._decoder.decode(((str(path), path) for path in paths), len(paths))}

    def names(self, target: str) -> tuple[str, ...]:
        return tuple(sorted({p.relative_to(self._folders["train"]).parts[0] for p in self._paths["train"]}))

    @cached_property
    def _folders(self) -> dict[Split, Path]:
        found = {split: self._root / split for split in SPLITS if (self._root / split).is_dir()}
        if found and "train" not in found:
            there = " and ".join(found)
            raise ConfigError(f"data.folder.path: {self._root} holds {there} but no train folder", hint=_HINT)
        return found or {"train": self._root}

    @cached_property
    def _paths(self) -> dict[Split, list[Path]]:
        try:
            return {split: _images_below(folder) for split, folder in self._folders.items()}
        except OSError as error:
            raise ConfigError(
                f"data.folder.path: {error.filename} cannot be read: {error.strerror}", hint="check its rights"
            ) from None

    @cached_property
    def _labelled(self) -> bool:
        depths = {
            split: {len(path.relative_to(self._folders[split]).parts) > 1 for path in paths}
            for split, paths in self._paths.items()
        }
        if len(set().union(*depths.values())) > 1:
            raise ConfigError(
                f"data.folder.path: {self._root} holds images both in and beside class folders", hint=_HINT
            )
        return depths["train"] == {True}


def _images_below(folder: Path) -> list[Path]:
    """Images at any depth, without hidden files and folders, sorted by their path."""
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            found += _images_below(entry)
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            found.append(entry)
    return found
