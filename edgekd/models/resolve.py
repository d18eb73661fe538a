"""From the name of a network to the network: the zoo, or "package.module:factory" found beside the pipeline file.

A user's factory is called here and nowhere else, so here any exception is a user's mistake: it becomes one line that
says what happened, and where in the user's code. Loads torch only when a network is made.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError, EdgekdError
from edgekd.models.elsewhere import digest_elsewhere, factory_of
from edgekd.models.imports import blame, digest_of, load
from edgekd.models.names import ZOO, check_name, elsewhere

if TYPE_CHECKING:
    from torch import nn

_NOTHING: Mapping[str, Any] = MappingProxyType({})


def load_factory(reference: str, base: Path) -> Callable[..., nn.Module]:
    """The function or class that makes a network.

    Args:
        reference: A zoo name, "package.module:factory" (the attribute may be dotted, "nets:Small.make"), or a network
            from elsewhere (elsewhere.py).
        base: Folder of the pipeline file; for a user's reference it goes to the front of `sys.path` and stays there.

    Raises:
        ConfigError: there is no such name, module or attribute, the import fails, or what is found cannot be called.
    """
    check_name(reference)
    if reference in ZOO:
        module_name, _, attribute = ZOO[reference].partition(":")
        zoo_factory: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), attribute)
        return zoo_factory
    if elsewhere(reference) is not None:
        return factory_of(reference, base)
    factory = load(reference, base, otherwise="define a function or class there that makes the network")
    _check_callable(factory, reference)
    return factory  # type: ignore[no-any-return]


def build(reference: str, args: Mapping[str, Any], base: Path, defaults: Mapping[str, Any] = _NOTHING) -> nn.Module:
    """Make a network.

    Args:
        reference: As for `load_factory`.
        args: Keyword arguments for the factory.
        base: Folder of the pipeline file.
        defaults: What the data knows (num_classes, in_channels, image_size): each is given to a factory that names it,
            unless `args` has it.

    Raises:
        ConfigError: as `load_factory`; or the factory does not take these arguments, raises, or makes no nn.Module.
    """
    from torch import nn

    factory = load_factory(reference, base)
    parameters = _parameters(factory)
    names = [name for name, parameter in (parameters or {}).items() if _by_keyword(parameter)]
    given = {**{name: value for name, value in defaults.items() if name in names}, **args}
    if parameters is not None:
        _check_args(reference, parameters, given)
    try:
        network = factory(**given)
    except EdgekdError:
        raise
    except (Exception, SystemExit) as error:
        written = ", ".join(f"{name}={value!r}" for name, value in given.items())
        message = f"{reference} with ({written}) failed: {blame(error, base.resolve())}"
        raise ConfigError(message, hint=_look_at_args(reference, parameters)) from error
    if not isinstance(network, nn.Module):
        message = f"{reference} gave a value of type {type(network).__name__}, not a torch.nn.Module"
        raise ConfigError(message, hint="a factory returns the network itself")
    return network


def argument_names(reference: str, base: Path) -> tuple[str, ...]:
    """Names of the arguments that a factory takes by keyword; none for one that does not tell."""
    parameters = _parameters(load_factory(reference, base)) or {}
    return tuple(name for name, parameter in parameters.items() if _by_keyword(parameter))


def code_digest(reference: str, base: Path) -> str:
    """What stands for the code of a network in a stage's key; neither torch nor the user's code is imported.

    For a name of the zoo, the name. Else the hex sha256 over the syntax trees, without comments and docstrings, of the
    whole top-level module or package and of the user's modules that it imports, from any folder of the import path, and
    over the versions of the installed libraries that these import.

    Raises:
        ConfigError: there is no such name or module, or a file is not valid Python (file:line).
    """
    check_name(reference)
    if reference in ZOO:
        return reference
    if elsewhere(reference) is not None:
        return digest_elsewhere(reference, base)
    return digest_of(reference, base)


def _check_callable(factory: Any, reference: str) -> None:
    from torch import nn

    if isinstance(factory, nn.Module):
        raise ConfigError(f"{reference} is a network, not a factory", hint="name a function that makes and returns it")
    if not callable(factory):
        message = f"{reference} is of type {type(factory).__name__}, which cannot be called"
        raise ConfigError(message, hint="name a function or class that makes the network")


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a factory; None for one that does not tell (written in C)."""
    try:
        return inspect.signature(factory).parameters
    except (ValueError, TypeError):
        return None


def _by_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}


def _check_args(reference: str, parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    names = [name for name, parameter in parameters.items() if _by_keyword(parameter)]
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [name for name in given if name not in names]
    if unknown and not open_ended:
        hint = did_you_mean(unknown[0], names) if names else "it takes none"
        known = f"; known are: {', '.join(names)}" if "known are" not in hint and names else ""
        raise ConfigError(f"{reference} takes no argument {unknown[0]!r}", hint=hint + known)
    missing = [n for n in names if parameters[n].default is inspect.Parameter.empty and n not in given]
    if missing:
        hint = f"give it under `args:` (--args NAME=VALUE); known are: {', '.join(names)}"
        raise ConfigError(f"{reference} needs the argument {missing[0]!r}", hint=hint)


def _look_at_args(reference: str, parameters: Mapping[str, inspect.Parameter] | None) -> str:
    shown = {n: "" if p.default is p.empty else f"={p.default!r}" for n, p in (parameters or {}).items()}
    known = ", ".join(f"{name}{default}" for name, default in shown.items())
    where = "(`args:` in a file, --args on the command line)"
    return f"look at its arguments {where}; it takes ({known})" if known else f"look at {reference} {where}"
