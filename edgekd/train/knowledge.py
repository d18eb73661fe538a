"""The table of knowledges: names that terms use, and the pure functions behind them.

A knowledge is a function(student, teacher, **settings) -> scalar tensor. Rooms above register theirs here; a user's own
is named by an import string "package.module:function".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError
from edgekd.tasks.classification import cross_entropy
from edgekd.tasks.regression import squared_error

Need = Literal["target", "index"]


@dataclass(frozen=True)
class Knowledge:
    """A named loss function, and what the trainer must know to call it.

    Attributes:
        function: (student, teacher, **settings) -> scalar.
        adapter: (student shapes, teacher shapes, *, samples, **settings) -> the module that learns and remembers beside
            the function and is called in its place, (student, teacher, **also); None where nothing is to be learned.
        coupled: rows of a batch interact, so that processes must see each other's.
        family: response, intermediate, relation, information, generation, several (of many teachers, or of none), task;
            own for a user's.
        levels: whether each side is one tensor, or a list of several stages, shallow to deep.
        needs: what must be passed besides the sides: class indices as `target`, sample ids as `index`.
        takes: what else of these is used where the data has it.
        features: reads feature maps or embeddings, not what a head gives.
    """

    name: str
    function: Callable[..., Tensor]
    adapter: Callable[..., nn.Module] | None = None
    coupled: bool = False
    family: str = "own"
    levels: Literal["one", "several"] = "one"
    needs: frozenset[Need] = frozenset()
    takes: frozenset[Need] = frozenset()
    features: bool = False


_TARGET: frozenset[Need] = frozenset({"target"})
_TABLE: dict[str, Knowledge] = {
    "cross_entropy": Knowledge("cross_entropy", cross_entropy, family="task", needs=_TARGET),
    "squared_error": Knowledge("squared_error", squared_error, family="task", needs=_TARGET),
}


def register(
    name: str,
    function: Callable[..., Tensor],
    *,
    adapter: Callable[..., nn.Module] | None = None,
    coupled: bool = False,
    family: str = "own",
    levels: Literal["one", "several"] = "one",
    needs: tuple[Need, ...] = (),
    takes: tuple[Need, ...] = (),
    features: bool = False,
) -> None:
    """Make a knowledge known under a name, see `Knowledge`.

    Raises:
        ValueError: another function is registered under this name.
    """
    known = _TABLE.get(name)
    if known is not None and known.function is not function:
        raise ValueError(f"a knowledge named {name!r} is registered already")
    _TABLE[name] = Knowledge(
        name, function, adapter, coupled, family, levels, frozenset(needs), frozenset(takes), features
    )


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
    raise ConfigError(f"unknown knowledge {name!r}", hint=did_you_mean(name, _TABLE))


def knowledges() -> tuple[Knowledge, ...]:
    """All that are registered, by name."""
    return tuple(_TABLE[name] for name in sorted(_TABLE))
