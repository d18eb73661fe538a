"""Mistakes in a user's knowledge: one line that names the term and the place in the user's code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from edgekd.errors import EdgekdError, TrainingError
from edgekd.models.imports import blame
from edgekd.train.knowledge import Knowledge
from edgekd.train.world import Term, texts_of

_HINT = "a knowledge takes tensors (N, ..) of both sides and returns the mean over the batch, a tensor without axes"


@contextlib.contextmanager
def blamed(term: Term, knowledge: Knowledge) -> Iterator[None]:
    """Inside, what a user's own knowledge raises becomes a TrainingError; what ours raises stays as it is."""
    if knowledge.family != "own":
        yield
        return
    try:
        yield
    except (EdgekdError, torch.OutOfMemoryError):  # memory is not theirs to mend in this line
        raise
    except Exception as error:  # the user's own code may raise anything
        sides = ", ".join((*texts_of(term.student), *texts_of(term.teacher)))
        raise TrainingError(f"the term {term.name!r} ({sides}) failed: {blame(error)}", hint=_HINT) from error


def check_scalar(loss: Any, term: Term) -> None:
    """Raises TrainingError for a loss that is no tensor without axes, of floating point."""
    if not isinstance(loss, Tensor):
        raise TrainingError(f"the term {term.name!r} gave no tensor but {type(loss).__name__}", hint=_HINT)
    if loss.dim() or not loss.is_floating_point():
        found = f"a tensor {tuple(loss.shape)} of {str(loss.dtype).removeprefix('torch.')}"
        raise TrainingError(f"the term {term.name!r} gave {found}, not one real number", hint="return e.g. loss.mean()")
