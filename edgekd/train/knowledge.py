"""The table of knowledges: names that terms use, and the pure functions behind them.

A knowledge is a function(student, teacher, **settings) -> scalar tensor. Rooms above register theirs here; a user's own
is named by an import string "package.module:function", or by the name that its package gives it in the entry point
group `edgekd.knowledge` (docs/extending.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from torch import Tensor, nn

from edgekd.config import Settings
from edgekd.config.entry_points import KNOWLEDGE, import_string, offered
from edgekd.config.settings import did_you_mean
from edgekd.config.signature import options_of
from edgekd.errors import ConfigError
from edgekd.models.imports import load_function
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
        of_classes: compares probabilities of classes, and so fits classification heads alone (read of a user's).
        half: its adapter takes features in half precision where training runs in it; all else is given float32.
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
    of_classes: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        unknown = sorted((self.needs | self.takes) - set(get_args(Need)))
        if unknown:
            raise ConfigError(
                f"a knowledge asks for {unknown[0]!r}, which nobody gives",
                hint=did_you_mean(unknown[0], get_args(Need)),
            )


F = TypeVar("F", bound=Callable[..., Tensor])
_FACTS = "__edgekd_knowledge__"
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
    half: bool = False,
) -> None:
    """Make a knowledge known under a name, see `Knowledge`.

    Raises:
        ValueError: another function is registered under this name.
    """
    known = _TABLE.get(name)
    if known is not None and known.function is not function:
        raise ValueError(f"a knowledge named {name!r} is registered already")
    wanted = frozenset(needs), frozenset(takes)
    _TABLE[name] = Knowledge(name, function, adapter, coupled, family, levels, *wanted, features, half=half)


def knowledge(
    *,
    adapter: Callable[..., nn.Module] | None = None,
    coupled: bool = False,
    levels: Literal["one", "several"] = "one",
    needs: tuple[Need, ...] = (),
    takes: tuple[Need, ...] = (),
    features: bool = False,
    of_classes: bool = False,
    half: bool = False,
) -> Callable[[F], F]:
    """Decorator that states facts of a user's knowledge, see `Knowledge`; a plain function needs none."""

    def state(function: F) -> F:
        wanted = frozenset(needs), frozenset(takes)
        facts = Knowledge("", function, adapter, coupled, "own", levels, *wanted, features, of_classes, half)
        setattr(function, _FACTS, facts)
        return function

    return state


def knowledge_named(name: str) -> Knowledge:
    """The knowledge of a name, of an import string, or of an installed package. Raises ConfigError for an unknown one.

    Raises:
        ConfigError: there is none of this name, or it does not import.
    """
    if name in _TABLE:
        return _TABLE[name]
    reference = import_string(name, KNOWLEDGE)
    if ":" not in reference:
        raise ConfigError(f"unknown knowledge {name!r}", hint=did_you_mean(name, [*_TABLE, *offered(KNOWLEDGE)]))
    function = load_function(reference, "knowledge", "define a function (student, teacher, **settings) -> scalar there")
    registered = (known for known in _TABLE.values() if known.function is function)
    facts = getattr(function, _FACTS, None) or next(registered, Knowledge(name, function))
    return dataclasses.replace(facts, name=name)


def own_options(name: str) -> type[Settings]:
    """The options of a user's knowledge: the keyword arguments of its adapter, or of its function where it has none.

    Raises:
        ConfigError: as `knowledge_named`, or its signature cannot be read.
    """
    found = knowledge_named(name)
    called: Callable[..., Any] = found.adapter or found.function
    besides = {"samples"} if found.adapter is not None else {"target", "index"}
    return options_of(called, name, given=2, besides=besides)


def knowledges() -> tuple[Knowledge, ...]:
    """All that are registered, by name."""
    return tuple(_TABLE[name] for name in sorted(_TABLE))
