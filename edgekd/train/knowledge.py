"""The table of knowledges: names that terms use, and the pure functions behind them.

A knowledge is a function(student, teacher, **settings) -> scalar tensor. Rooms above register theirs here; a user's own
is named by an import string "package.module:function".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from edgekd.errors import ConfigError
from edgekd.tasks.classification import cross_entropy
from edgekd.tasks.regression import squared_error


@dataclass(frozen=True)
class Knowledge:
    """A named loss function."""

    name: str
    function: Callable[..., Tensor]
    coupled: bool = False


_TABLE: dict[str, Knowledge] = {
    "cross_entropy": Knowledge("cross_entropy", cross_entropy),
    "squared_error": Knowledge("squared_error", squared_error),
}


def register(name: str, function: Callable[..., Tensor]) -> None:
    """Make a knowledge known under a name; registering another function under a known name is an error."""
    known = _TABLE.get(name)
    if known is not None and known.function is not function:
        raise ValueError(f"a knowledge named {name!r} is registered already")
    _TABLE[name] = Knowledge(name, function)


def knowledge_named(name: str) -> Knowledge:
    """The knowledge of a name, or of an import string. Raises ConfigError for an unknown one."""
    if name in _TABLE:
        return _TABLE[name]
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return Knowledge(name, getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"knowledge {name!r} does not import: {error}", hint="write package.module:function"
            ) from None
    raise ConfigError(f"unknown knowledge {name!r}", hint=f"known are: {', '.join(sorted(_TABLE))}")
