"""Targets as tensors, and the checks that a label makes sense."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgekd.data.sources import Split
from edgekd.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a position that no loss counts, in targets of several labels per sample (pixels, tokens)."""


def target_tensor(values: Any, where: str) -> Tensor:
    """A NumPy array (N, ..) as a target: int64 for integers and booleans, float32 for floats.

    Args:
        where: what to call the array in a message.

    Raises:
        DataError: another type, or a value that is not finite.
    """
    import numpy as np
    import torch

    if values.dtype.kind in "iub":
        labels = torch.from_numpy(values.astype(np.int64))
        return labels[:, 0] if labels.dim() == 2 and labels.shape[1] == 1 else labels
    if values.dtype.kind == "f":
        return torch.from_numpy(finite_float32(values, where))
    raise DataError(f"{where}: targets of type {values.dtype} are not known", hint="use integers, floats or texts")


def finite_float32(values: Any, where: str) -> Any:
    """A NumPy array (N, ..) as float32.

    Raises:
        DataError: a value is not finite, or not in the range of float32.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(result)
    if not finite.all():
        place = np.unravel_index(int(np.argmin(finite)), result.shape)
        raise DataError(
            f"{where} row {place[0]}: the value {values[place]} is not finite in float32",
            hint="remove or fill such values before training",
        )
    return result


def index_names(values: Sequence[str], names: Sequence[str], split: str) -> Any:
    """Texts as their place in `names`: an int64 NumPy array (N,).

    Raises:
        DataError: a text that is not among the names.
    """
    import numpy as np

    places = {name: place for place, name in enumerate(names)}
    for row, value in enumerate(values):
        if value not in places:
            raise _unseen(split, row, repr(value))
    return np.array([places[value] for value in values], dtype=np.int64)


def index_codes(codes: Any, distinct: Sequence[str], names: Sequence[str], split: str) -> Any:
    """`index_names` of the texts distinct[codes], codes being an integer NumPy array (N,): int64 (N,).

    Raises:
        DataError: a text that is not among the names.
    """
    import numpy as np

    places = {name: place for place, name in enumerate(names)}
    found = np.array([places.get(name, -1) for name in distinct], dtype=np.int64)[codes]
    if len(found) and found.min() < 0:
        row = int(np.argmin(found >= 0))
        raise _unseen(split, row, repr(distinct[codes[row]]))
    return found


def check_labels(labels: Tensor, split: str, target: str, *, classes: int | None, seen: Tensor | None) -> None:
    """See that integer labels, (N,) or (N, ..), are classes.

    Args:
        classes: number of classes, when it is given.
        seen: the distinct labels of train, to check another split where no number is given.

    Raises:
        DataError: a label is negative, at least `classes`, or was never seen in train. It names split, row and value.
    """
    import torch

    checked = labels if labels.dim() == 1 else torch.where(labels == IGNORED, 0, labels)
    _refuse(
        labels,
        checked < 0,
        lambda row, value: DataError(
            f"{split} row {row}: the label {value} of {target!r} is negative",
            hint="classes count from 0" + (f"; {IGNORED} marks a position to ignore" if labels.dim() > 1 else ""),
        ),
    )
    if classes is not None:
        _refuse(
            labels,
            checked >= classes,
            lambda row, value: DataError(
                f"{split} row {row}: the label {value} of {target!r} is not below the number of classes, {classes}",
                hint=f"set `data.classes` to at least {int(checked.max()) + 1}, or mend the labels",
            ),
        )
    elif seen is not None:
        known = torch.isin(labels, seen) | (labels == IGNORED if labels.dim() > 1 else False)
        _refuse(labels, ~known, lambda row, value: _unseen(split, row, str(value)))


def _refuse(labels: Tensor, wrong: Tensor, error: Callable[[int, int], DataError]) -> None:
    places = wrong.nonzero()
    if len(places):
        place = tuple(places[0].tolist())
        raise error(place[0], int(labels[place]))


def _unseen(split: str, row: int, value: str) -> DataError:
    return DataError(
        f"{split} row {row}: the label {value} never occurs in train",
        hint="mend the labels, or give the number of classes as `data.classes` if they are integers",
    )


_INTEGER = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")


class TextLabels:
    """Labels that are written as texts: integers if all of train's are, else numbers if all are, else sorted names.

    Args:
        texts: gives the texts of a split, one per row.
    """

    def __init__(self, texts: Callable[[Split], Sequence[str]]) -> None:
        self._texts = texts

    @cached_property
    def names(self) -> tuple[str, ...] | None:
        """The distinct texts of train, sorted; None where they are numbers."""
        return tuple(sorted(set(self._texts("train")))) if self._kind is None else None

    def target(self, split: Split) -> Tensor:
        """The labels of a split: int64 (N,) or float32 (N,).

        Raises:
            DataError: a label is missing, is not of the kind of train's, or does not occur there.
        """
        import numpy as np

        texts = self._texts(split)
        for row, text in enumerate(texts):
            if not text:
                raise DataError(f"{split} row {row}: the label is missing", hint="remove the row, or give it a label")
            if self._kind is not None and not self._kind.fullmatch(text):
                number = "an integer" if self._kind is _INTEGER else "a number"
                raise DataError(
                    f"{split} row {row}: the label {text[:60]!r} is not {number}, as those of train are",
                    hint="write all labels alike",
                )
        if self.names is not None:
            return target_tensor(index_names(texts, self.names, split), split)
        kind = np.int64 if self._kind is _INTEGER else np.float64
        return target_tensor(np.array([kind(text) for text in texts], dtype=kind), f"the labels of {split}")

    @cached_property
    def _kind(self) -> re.Pattern[str] | None:
        distinct = set(self._texts("train"))
        return next((kind for kind in (_INTEGER, _NUMBER) if all(map(kind.fullmatch, distinct))), None)
