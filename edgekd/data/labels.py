"""Targets as tensors, and the checks that a label makes sense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
