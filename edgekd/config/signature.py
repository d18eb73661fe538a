"""The options of a user's function: its keyword arguments as a Settings class, so that they are checked like ours."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection
from typing import Any, cast

from pydantic import ConfigDict, PydanticUserError, create_model
from pydantic.errors import PydanticSchemaGenerationError

from edgekd.config.settings import Settings
from edgekd.errors import ConfigError, first_line

_PLAIN: dict[type, Any] = {bool: bool, int: int | float, float: int | float, str: str}


class OpenSettings(Settings):
    """Options of a function that takes any."""

    model_config = ConfigDict(extra="allow")


def options_of(function: Callable[..., Any], name: str, *, given: int, besides: Collection[str] = ()) -> type[Settings]:
    """The options of a function, with types from its annotations; an argument without one has that of its default.

    Args:
        function: it may be a class, which is called to make an object.
        name: how the user calls it, for messages.
        given: how many arguments at the front are not options.
        besides: names of others that are none.

    Raises:
        ConfigError: an annotation cannot be read, or is of no type that a pipeline file can hold.
    """
    try:
        signature = inspect.signature(function, eval_str=True)
    except (ValueError, TypeError):  # written in C: it says nothing
        return OpenSettings
    except Exception as error:  # an annotation is the user's code
        raise _unreadable(name, error) from None
    listed = [p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL]
    named = [p for p in listed[given:] if p.kind is not p.VAR_KEYWORD and p.name not in besides]
    fields: dict[str, Any] = {p.name: (_type_of(p), ... if p.default is p.empty else p.default) for p in named}
    base = OpenSettings if any(p.kind is p.VAR_KEYWORD for p in listed) else Settings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an option may be called as a method of pydantic's is
            made: Any = create_model("Options", __base__=base, **fields)
            made.model_rebuild(force=True)  # now: what an annotation cannot be is said here
            return cast(type[Settings], made)
    except (PydanticSchemaGenerationError, PydanticUserError, NameError, TypeError) as error:
        raise _unreadable(name, error) from None


def arguments_of(settings: Settings) -> dict[str, Any]:
    """The options that were given, as the function takes them."""
    return {name: getattr(settings, name) for name in sorted(settings.model_fields_set)}


def _type_of(parameter: inspect.Parameter) -> Any:
    if parameter.annotation is parameter.empty:
        return Any if parameter.default is parameter.empty else _PLAIN.get(type(parameter.default), Any)
    return parameter.annotation


def _unreadable(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"the options of {name} cannot be read: {first_line(error)}",
        hint="annotate them with int, float, bool, str, tuples and dictionaries of these, or Literal",
    )
