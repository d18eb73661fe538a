"""The exact teacher cache: a frozen teacher's outputs for every (sample, view), on disk, shared by runs and processes.

    caches/teacher/<key>/meta.json      what it is a cache of
    caches/teacher/<key>/values.bin     a row for each (sample, view): the outputs one after the other, then a checksum

The file is mapped into memory. Its space is reserved when it is made: a disk that is too full is found then (writing to
a map of a hole in a file would kill the process), and the teacher runs live. A row counts as there when its checksum
fits, so one that was half written when a machine went down is a miss. Processes that fill the same rows write the same.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.files import lock, replace_atomic, sha256_json, write_atomic
from edgekd.store import Store

KIND = "teacher"
_META, _VALUES = "meta.json", "values.bin"
_DTYPES = {"f32": np.float32, "f16": np.float16}
_CHECK_BYTES = 4
_LOCK_S = 60.0
_EXACT_F16 = 2048


@dataclass(frozen=True)
class Head:
    """One output of the teacher: its name, the shape of a sample's value, how many of its largest are kept (0: all)."""

    name: str
    shape: tuple[int, ...]
    top_k: int = 0

    @property
    def numbers(self) -> int:
        """Stored numbers for one sample: all values, or the largest, their places and the level of the rest."""
        return 2 * self.top_k + 1 if self.top_k else int(np.prod(self.shape, dtype=np.int64))


def row_bytes(heads: Sequence[Head], dtype: str) -> int:
    """Bytes of one (sample, view), rounded up to whole words, with its checksum."""
    size = sum(head.numbers for head in heads) * np.dtype(_DTYPES[dtype]).itemsize
    return -(-size // _CHECK_BYTES) * _CHECK_BYTES + _CHECK_BYTES


class TeacherCache:
    """Outputs of one frozen teacher. See `open_cache`."""

    def __init__(self, path: Path, heads: Sequence[Head], dtype: str, ids: Tensor, views: int) -> None:
        self.heads, self._dtype, self._views = tuple(heads), _DTYPES[dtype], views
        self._ids = ids.cpu().sort().values
        self._width = row_bytes(heads, dtype)
        shape = (len(ids) * views, self._width // _CHECK_BYTES)
        if not path.exists():
            replace_atomic(path, lambda new: _reserve(new, shape[0] * self._width))
        self._rows: NDArray[np.uint32] = np.memmap(path, np.uint32, "r+", shape=shape)

    def missing(self, ids: Tensor, slots: Tensor) -> Tensor:
        """Which pairs of sample id and view number, each (N,), are not there: bool (N,); so are ids of other tables."""
        known, missing = self._known(ids), torch.ones(len(ids), dtype=torch.bool)
        rows = self._rows[self._places(ids.cpu()[known], slots.cpu()[known])]
        missing[known] = torch.from_numpy(rows[:, -1] != _checksum(rows[:, :-1]))
        return missing

    def read(self, ids: Tensor, slots: Tensor) -> dict[str, Tensor]:
        """Named outputs of pairs that are there, each (N, ..), float32."""
        rows = self._rows[self._places(ids, slots)]
        values = np.ascontiguousarray(rows[:, :-1]).view(self._dtype)
        outputs, start = {}, 0
        for head in self.heads:
            part = torch.from_numpy(values[:, start : start + head.numbers].astype(np.float32))
            outputs[head.name] = _unpack(part, head) if head.top_k else part.reshape(-1, *head.shape)
            start += head.numbers
        return outputs

    def write(self, ids: Tensor, slots: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Keep named outputs of pairs; values first, then the checksum that makes a row count."""
        values = (
            torch.cat([_pack(outputs[h.name].detach().cpu(), h) for h in self.heads], 1).numpy().astype(self._dtype)
        )
        words = np.zeros((len(values), self._rows.shape[1] - 1), np.uint32)
        words.view(self._dtype)[:, : values.shape[1]] = values
        places = self._places(ids, slots)
        self._rows[places, :-1] = words
        self._rows[places, -1] = _checksum(words)

    def filled(self) -> int:
        """How many rows are there; reads the whole file."""
        return int((self._rows[:, -1] == _checksum(self._rows[:, :-1])).sum())

    def _known(self, ids: Tensor) -> Tensor:
        """Which samples this is a cache of: bool (N,), on the CPU."""
        own = ids.cpu()
        if not len(self._ids):
            return torch.zeros(len(own), dtype=torch.bool)
        nearest = torch.searchsorted(self._ids, own.contiguous()).clamp(max=len(self._ids) - 1)
        return self._ids[nearest] == own

    def _places(self, ids: Tensor, slots: Tensor) -> NDArray[np.int64]:
        """Rows of the file. Raises KeyError for a sample that this is no cache of: a neighbour's row would be wrong."""
        if not bool(self._known(ids).all()):
            raise KeyError("samples that are not those of this cache")
        samples = torch.searchsorted(self._ids, ids.cpu().contiguous())
        places: NDArray[np.int64] = (samples * self._views + slots.cpu()).numpy()
        return places


def open_cache(
    store: Store,
    about: Mapping[str, Any],
    heads: Sequence[Head],
    *,
    dtype: str,
    ids: Tensor,
    views: int,
    max_bytes: int,
) -> tuple[TeacherCache | None, str]:
    """A cache of what `about` describes, and words for the log; None when it would be too large.

    Args:
        about: all that decides the outputs: digests of teacher and data, views, precision. Its sha256 is the key.
        heads: the teacher's outputs.
        dtype: f32 keeps the outputs as they are, f16 rounds them.
        ids: int64 (N,), the samples that are asked about.
        views: views that one sample can have.
        max_bytes: limit for the whole file.
    """
    if dtype == "f16" and any(head.top_k and head.shape[0] > _EXACT_F16 for head in heads):
        dtype = "f32"  # places of classes are stored as numbers, and float16 counts exactly to 2048 only
    samples = len(ids)
    size = samples * views * row_bytes(heads, dtype)
    if size > max_bytes:
        return None, f"live: a cache would take {_text(size)}, teacher_cache_bytes is {_text(max_bytes)}"
    facts = {**about, "dtype": dtype, "samples": samples, "views": views, "heads": [vars(head) for head in heads]}
    key = sha256_json(facts)
    folder = store.cache(KIND, key)
    with lock(store.root / "locks" / f"{KIND}.{key}", timeout_s=_LOCK_S, holder_hint="another run makes this cache"):
        write_atomic(folder / _META, json.dumps(facts, indent=1))  # its time is that of the last use
        try:
            cache = TeacherCache(folder / _VALUES, heads, dtype, ids, views)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return None, f"live: there is no space for a cache of {_text(size)}"
    return cache, f"cached: {views} views of {samples} samples in {dtype}, at most {_text(size)}"


def _text(size: int) -> str:
    """A number of bytes as a person reads it."""
    unit, name = next((u, n) for u, n in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes")) if size >= u or u == 1)
    return f"{size / unit:.3g} {name}"


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros whose blocks are its own."""
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def _pack(output: Tensor, head: Head) -> Tensor:
    """One head's stored numbers (N, numbers) in float32.

    With top_k: the k largest logits, their places, and the mean level of the rest, log(mean(exp)), so that the softmax
    of what is read back has the same k largest probabilities; the error is that the rest share theirs evenly.
    """
    flat = output.reshape(len(output), -1).float()
    if not head.top_k:
        return flat
    values, places = flat.topk(head.top_k, 1)
    others = flat.scatter(1, places, float("-inf"))
    level = others.logsumexp(1, keepdim=True) - float(np.log(flat.shape[1] - head.top_k))
    return torch.cat([values, places.float(), level], 1)


def _unpack(stored: Tensor, head: Head) -> Tensor:
    k, classes = head.top_k, head.shape[0]
    values, places, level = stored[:, :k], stored[:, k : 2 * k].long(), stored[:, 2 * k :]
    return level.expand(-1, classes).clone().scatter_(1, places, values)


def _checksum(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A sum that tells a written row from an empty or half-written one; never 0, so a hole in the file is a miss."""
    weights = (np.arange(1, words.shape[1] + 1, dtype=np.uint32) * np.uint32(2_654_435_761)) | np.uint32(1)
    with np.errstate(over="ignore"):
        total: NDArray[np.uint32] = (words * weights).sum(1, dtype=np.uint32)
    return total | np.uint32(1)
