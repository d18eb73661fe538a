"""Arrays in NumPy archives: one archive per split, or one that is split by seed. Nothing in them is ever unpickled."""

from __future__ import annotations

import ast
import math
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.data.memory import free_bytes
from edgekd.data.readers.images import DAMAGED
from edgekd.data.sources import SPLITS, NpzSettings, Split
from edgekd.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_HEADER = 65536


class NpzReader:
    """Named arrays. uint8 of four axes is images; every other input becomes float32."""

    def __init__(self, settings: NpzSettings, root: Path) -> None:
        self.input_names = settings.inputs
        self.target_names = settings.targets
        self._layout = settings.layout
        self._files = _files(root)
        self.splits = tuple(self._files)
        self._inputs: dict[Split, dict[str, Tensor]] = {}
        self._targets: dict[Split, dict[str, Tensor]] = {}
        self._names: dict[str, tuple[str, ...]] = {}

    def check(self) -> None:
        for path in self._files.values():
            if not path.is_file():
                raise ConfigError(
                    f"data.npz.path: {path} does not exist", hint="check the path and the name of the file"
                )
            held = _array_names(path)
            for field, wanted in (("inputs", self.input_names), ("targets", self.target_names)):
                for name in wanted:
                    if name not in held:
                        raise ConfigError(
                            f"data.npz.{field}: {path} holds no array {name!r}", hint=did_you_mean(name, held)
                        )
            if self._layout is None:
                for name in self.input_names:
                    _check_layout(path, name)

    def files(self, split: Split | None = None) -> dict[str, tuple[Path, ...]]:
        return {f"{of}.npz": (path,) for of, path in self._files.items() if split in (None, of)}

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        last = {"layout": self._layout} if self._layout == "nhwc" else {}
        return {"inputs": self.input_names, "targets": self.target_names, **last}

    def rows(self, split: Split) -> int:
        self._load(split)
        return len(self._inputs[split][self.input_names[0]])

    def targets(self, split: Split) -> dict[str, Tensor]:
        self._load(split)
        return self._targets[split]

    def inputs(self, split: Split, rows: Tensor) -> dict[str, Tensor]:
        self._load(split)
        return {name: values[rows] for name, values in self._inputs[split].items()}

    def names(self, target: str) -> tuple[str, ...] | None:
        self._load("train")
        return self._names.get(target)

    def _load(self, split: Split) -> None:
        if split in self._inputs:
            return
        if split != "train":
            self._load("train")
        path = self._files[split]
        arrays = _read(path, {*self.input_names, *self.target_names})
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} {n}" for name, n in sorted(lengths.items()))
            raise DataError(
                f"{path}: the arrays differ in rows: {text}", hint="the first axis of every array counts samples"
            )
        for name in self.input_names if self._layout == "nhwc" else ():
            if arrays[name].ndim == 4:
                arrays[name] = arrays[name].transpose(0, 3, 1, 2)
        inputs = {name: _input(arrays[name], f"{path} array {name!r}") for name in self.input_names}
        for name, values in inputs.items():
            shape = tuple(self._inputs["train"][name].shape[1:]) if split != "train" else tuple(values.shape[1:])
            if tuple(values.shape[1:]) != shape:
                raise DataError(
                    f"{path}: a row of {name!r} has the shape {tuple(values.shape[1:])}, in train {shape}",
                    hint="save the same shape for every split",
                )
        self._targets[split] = {name: self._target(arrays[name], name, split) for name in self.target_names}
        self._inputs[split] = inputs

    def _target(self, values: Any, name: str, split: Split) -> Tensor:
        from edgekd.data.labels import index_names, target_tensor

        if values.dtype.kind == "U" and values.ndim == 1:
            texts = [str(value) for value in values]
            if split == "train":
                self._names[name] = tuple(sorted(set(texts)))
            values = index_names(texts, self._names.get(name, ()), split)
        return target_tensor(values, f"{self._files[split]} array {name!r}")


def arrays_of(root: Path) -> set[str]:
    """Names of the arrays of train; none if it is not there. Raises ConfigError and DataError as the reader does."""
    path = _files(root)["train"]
    return _array_names(path) if path.is_file() else set()


def _files(root: Path) -> dict[Split, Path]:
    if root.suffix == ".npz":
        return {"train": root}
    if not root.is_dir():
        raise ConfigError(
            f"data.npz.path: {root} is no folder and no .npz file",
            hint="give a folder with train.npz, or one .npz file",
        )
    there = [split for split in SPLITS if (root / f"{split}.npz").is_file()]
    return {split: root / f"{split}.npz" for split in SPLITS if split in there or split == "train"}


def _array_names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except DAMAGED:
        raise _unreadable(path) from None


def _check_layout(path: Path, name: str) -> None:
    """Refuse what looks like images with their channels last, by the header of the array alone."""
    dtype, shape = _header(path, name)
    if len(shape) != 4 or shape[3] not in (1, 3) or shape[1] in (1, 3):
        return
    if dtype == "|u1" or shape[1] == shape[2]:  # floats of four axes may be anything, squares hardly
        raise ConfigError(
            f"data.npz.layout: {path} array {name!r} of the shape {shape} looks like images with their channels last",
            hint="write `layout: nhwc`, or `layout: nchw` if the second axis is the channels",
        )


def _header(path: Path, name: str) -> tuple[str, tuple[int, ...]]:
    """Type and shape of an array, without numpy; of no axes where that cannot be read: reading it will say why."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            version = stream.read(8)[6]
            length = int.from_bytes(stream.read(2 if version == 1 else 4), "little")
            facts = ast.literal_eval(stream.read(min(length, _LONGEST_HEADER)).decode("latin-1"))
            return str(facts["descr"]), tuple(facts["shape"])
    except (*DAMAGED, RecursionError):
        return "", ()


def _read(path: Path, names: set[str]) -> dict[str, Any]:
    import numpy as np

    arrays: dict[str, Any] = {}
    try:
        _check_sizes(path, names)
        with np.load(path, allow_pickle=False) as archive:
            for name in sorted(names):
                try:
                    arrays[name] = archive[name]
                except ValueError:
                    raise DataError(
                        f"{path} array {name!r}: holds Python objects, or is damaged",
                        hint="save numbers: `numpy.savez(path, name=array.astype('float32'))`",
                    ) from None
    except DAMAGED:
        raise _unreadable(path) from None
    for name, values in arrays.items():
        if values.ndim == 0:
            raise DataError(
                f"{path} array {name!r}: is one number", hint="the first axis of every array counts samples"
            )
    return arrays


def _check_sizes(path: Path, names: set[str]) -> None:
    """See that arrays are as large as the archive says, and fit into memory, before any is made: a few bytes can say
    that they hold terabytes.

    Raises:
        DataError: they do not.
    """
    total = 0
    with zipfile.ZipFile(path) as archive:
        for name in sorted(names):
            entry = archive.getinfo(f"{name}.npy")
            if entry.flag_bits & 1:
                raise zipfile.BadZipFile("encrypted")
            with archive.open(entry) as stream:
                needed = _header_bytes(stream)
            if needed is not None and needed > entry.file_size:
                raise zipfile.BadZipFile("an array is cut off")
            total += entry.file_size
    memory = free_bytes()
    if total > memory:
        raise DataError(
            f"{path}: its arrays take {total / 2**30:.1f} GiB, and {memory / 2**30:.1f} GiB of memory are free",
            hint="save fewer samples, smaller types (uint8, float32), or encoded images",
        )


def _header_bytes(stream: IO[bytes]) -> int | None:
    """Bytes of an array by its own header; None for a version that only NumPy's private parts read."""
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    read = readers.get(npy.read_magic(stream))
    if read is None:
        return None
    shape, _, dtype = read(stream)
    return 0 if dtype.hasobject else math.prod(shape) * int(dtype.itemsize)


def _input(values: Any, where: str) -> Tensor:
    import numpy as np
    import torch

    from edgekd.data.labels import finite_float32

    if values.dtype.kind not in "iufb":
        raise DataError(f"{where}: inputs of type {values.dtype} are not known", hint="save numbers, e.g. float32")
    if values.dtype == np.uint8 and values.ndim == 4:
        return torch.from_numpy(np.ascontiguousarray(values))
    return torch.from_numpy(finite_float32(values, where))


def _unreadable(path: Path) -> DataError:
    return DataError(f"{path}: is not a readable NumPy archive", hint="write it with `numpy.savez`")
