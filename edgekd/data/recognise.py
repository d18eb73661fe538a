"""What kind of data set lies at a path, and which of its columns are images and labels: a `data:` block for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from edgekd.config.settings import did_you_mean
from edgekd.data.readers.csv_files import header_of
from edgekd.data.readers.huggingface import features_of, folders_of
from edgekd.data.readers.layout import files_of
from edgekd.data.readers.npz import arrays_of
from edgekd.data.readers.parquet_footer import read_footer
from edgekd.data.readers.webdataset import first_extensions
from edgekd.data.sources import SOURCES
from edgekd.errors import ConfigError

KINDS = tuple(name for name in SOURCES if name != "digits")
_BY_SUFFIX = {".npz": "npz", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".tar": "webdataset"}
_PATHS = ("path", "image", "file", "filename", "file_name", "filepath", "image_path", "img")
_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "png")
_LABELS = ("label", "labels", "class", "category", "target", "fine_label", "cls", "y")
_SPLITS = ("split", "subset", "partition")
_INPUTS = ("x", "images", "image", "inputs", "data", "x_train")
_TARGETS = ("y", "labels", "label", "targets", "target", "y_train")


def recognise(
    path: Path, *, kind: str | None = None, image: str | None = None, label: str | None = None
) -> dict[str, Any]:
    """The source of a `data:` block for what lies at a path, e.g. {"folder": {"path": ..}}.

    Args:
        kind: one of `KINDS`, instead of what the path looks like.
        image: column, extension or array of the images, instead of one with a usual name.
        label: the same of the labels; without it and without a usual name there are none.

    Raises:
        ConfigError: there is nothing, or nothing that is known.
        DataError: a file is not what its name says.
    """
    if not path.exists():
        raise ConfigError(f"{path}: does not exist", hint="give the path of a data set: a folder or a file")
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"--kind {kind}: is not known", hint=did_you_mean(kind, KINDS))
    found = kind or _kind(path)
    named = {"folder": lambda _: {}, "parquet": _parquet, "csv": _csv, "npz": _npz}
    named |= {"webdataset": _webdataset, "huggingface": _huggingface}
    options = named[found](path)
    if found != "folder":
        options |= _given(found, image, label)
    return {found: {"path": str(path), **options}}


def _kind(path: Path) -> str:
    if not path.is_dir():
        found = _BY_SUFFIX.get(path.suffix.lower())
        if found is None:
            raise ConfigError(
                f"{path}: is no data set that is known", hint=f"a folder, or a file of {', '.join(_BY_SUFFIX)}"
            )
        return found
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "huggingface"
    by_files = {"parquet": files_of(path, ".parquet"), "webdataset": files_of(path, ".tar", loose=True)}
    by_files |= {"npz": files_of(path, ".npz"), "csv": files_of(path, ".csv") or files_of(path, ".tsv")}
    return next((kind for kind, files in by_files.items() if "train" in files), "folder")


def _given(kind: str, image: str | None, label: str | None) -> dict[str, Any]:
    if kind == "npz":
        return ({"inputs": [image]} if image else {}) | ({"targets": [label]} if label else {})
    return ({"image": image} if image else {}) | ({"label": label} if label else {})


def _parquet(path: Path) -> dict[str, Any]:
    columns = read_footer(_first(path, ".parquet")).columns
    return {"image": _usual(columns, _IMAGES) or next(iter(columns), "image"), "label": _usual(columns, _LABELS)}


def _csv(path: Path) -> dict[str, Any]:
    file = path if not path.is_dir() else _first(path, ".csv", ".tsv")
    columns = header_of(file)
    found = {"image": _usual(columns, _PATHS) or next(iter(columns), "path"), "label": _usual(columns, _LABELS)}
    return found | ({"split": _usual(columns, _SPLITS)} if file == path else {})


def _npz(path: Path) -> dict[str, Any]:
    arrays = sorted(arrays_of(path))
    image, label = _usual(arrays, _INPUTS) or next(iter(arrays), "x"), _usual(arrays, _TARGETS)
    return {"inputs": [image], "targets": [label] if label else []}


def _webdataset(path: Path) -> dict[str, Any]:
    return {"label": "cls" if "cls" in first_extensions(_first(path, ".tar")) else None}


def _huggingface(path: Path) -> dict[str, Any]:
    folders = folders_of(path)
    features = features_of(folders.get("train", path))
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    pictures = [name for name, kind in kinds.items() if kind == "Image"]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    label = _usual(classes, _LABELS) or _usual(kinds, _LABELS) or next(iter(classes), None)
    return {"image": next(iter(pictures), "image"), "label": label}


def _first(path: Path, *suffixes: str) -> Path:
    """The first file of train."""
    for suffix in suffixes:
        files = files_of(path, suffix, loose=True).get("train")
        if files:
            return files[0]
    raise ConfigError(f"{path}: holds no train*{suffixes[0]}", hint=f"give a folder with one, or a {suffixes[0]} file")


def _usual(names: Collection[str], usual: Iterable[str]) -> str | None:
    """The first of the usual names that is there."""
    return next((name for name in usual if name in names), None)
