"""Schemes and knowledges of the user's own: what they state of themselves, and whether the file uses them rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from edgekd.config import Problem, Settings, validate
from edgekd.config.entry_points import KNOWLEDGE, SCHEMES, import_string
from edgekd.config.signature import options_of
from edgekd.config.tree import Location
from edgekd.distill.scheme_settings import SchemeFacts
from edgekd.errors import ConfigError
from edgekd.models.imports import digest_of, load_function, put_first

if TYPE_CHECKING:
    from edgekd.distill.knowledge_settings import KnowledgeSettings
    from edgekd.distill.settings import DistillationSettings

F = TypeVar("F", bound=Callable[..., Any])
_FACTS = "__edgekd_scheme__"


def scheme(
    *, help: str = "", teacher: bool = True, task_weight: float | None = None, tables: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Decorator that states facts of a user's scheme, a function (recipe, cast, **options) -> list of phases.

    Args:
        help: who teaches whom, for `edgekd list schemes`; by default the first line of its docstring.
        teacher: whether it learns from a teacher that an earlier stage makes.
        task_weight: of the task's own loss, unless the file says otherwise; None: as the knowledge has it.
        tables: those of its options that name tables of the data besides the splits.
    """

    def state(function: F) -> F:
        setattr(function, _FACTS, SchemeFacts(help or _first(function), ("options",), teacher, task_weight, tables))
        return function

    return state


@dataclass(frozen=True)
class OwnScheme:
    """A user's scheme: the function that makes its phases, what it states, and its options."""

    function: Callable[..., Any]
    facts: SchemeFacts
    options: type[Settings]


def own_scheme(name: str) -> OwnScheme:
    """The scheme behind an import string, or behind the name that an installed package gives it.

    Raises:
        ConfigError: it does not import, is no function of a recipe and a cast, or its signature cannot be read.
    """
    hint = "define a function (recipe, cast, **options) -> list of phases there"
    function = load_function(import_string(name, SCHEMES), "scheme", hint)
    facts = getattr(function, _FACTS, None) or SchemeFacts(_first(function), ("options",))
    options = options_of(function, name, given=2)
    for table in facts.tables:
        if table not in options.model_fields:
            raise ConfigError(f"scheme {name} has no option {table!r} that names a table", hint="mend its `tables=`")
    return OwnScheme(function, facts, options)


class Teaching(Protocol):
    """Options of a stage in which knowledge is taught: distill and quantize."""

    @property
    def knowledge(self) -> tuple[KnowledgeSettings, ...] | None:
        """What is taught."""
        ...


def references_of(settings: Teaching) -> dict[Location, str]:
    """Import strings of what is the user's own in the options of a stage that teaches, by where it stands."""
    found: dict[Location, str] = {}
    distillation = _with_own_scheme(settings)
    if distillation is not None:
        found["scheme",] = import_string(distillation.scheme, SCHEMES)
    for index, item in enumerate(settings.knowledge or ()):
        if item.own is not None:
            found["knowledge", index] = import_string(item.own.name, KNOWLEDGE)
    return found


def digests_of(settings: Teaching, base: Path) -> dict[str, str]:
    """Digests of the code of what is the user's own, the whole top-level module of each; nothing is imported."""
    return {reference: digest_of(reference, base) for reference in references_of(settings).values()}


def own_problems(settings: Teaching, base: Path) -> Iterator[Problem]:
    """What is wrong with the user's own schemes and knowledges and their options; they are imported for that.

    Args:
        base: folder of the pipeline file, which is on the import path from now on.
    """
    if references_of(settings):
        put_first(base.resolve())
    distillation = _with_own_scheme(settings)
    if distillation is not None:
        name, given = distillation.scheme, distillation.options
        yield from _checked(lambda: own_scheme(name).options, given, ("scheme",), ("options",))
    for index, item in enumerate(settings.knowledge or ()):
        if item.own is not None:
            from edgekd.train.knowledge import own_options

            place = ("knowledge", index, item.own.name)
            own = item.own.name
            yield from _checked(lambda own=own: own_options(own), item.own.options, place, place)  # type: ignore[misc]


def _with_own_scheme(settings: Teaching) -> DistillationSettings | None:
    """The options of a distillation by a scheme of the user's own, or None."""
    from edgekd.distill.settings import DistillationSettings

    return settings if isinstance(settings, DistillationSettings) and settings.is_own else None


def _checked(
    find: Callable[[], type[Settings]], options: Mapping[str, Any], named: Location, below: Location
) -> Iterator[Problem]:
    try:
        kind = find()
    except ConfigError as error:
        yield Problem(named, error.message, error.hint or "")
        return
    yield from validate(kind, dict(options), below)[1]


def _first(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]
