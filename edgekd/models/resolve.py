"""From the name of a network to the network: the zoo, or "package.module:factory" found beside the pipeline file.

A user's code is imported and called here and nowhere else, so here any exception is a user's mistake: it becomes one
line that says what happened, and where in the user's code. Loads torch only when a network is made.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError
from edgekd.models.names import ZOO, check_name
from edgekd.models.source import is_installed, module_digest, places_of

if TYPE_CHECKING:
    from torch import nn

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_OUR_FOLDER = Path(__file__).resolve().parents[1]
_bases: list[Path] = []  # folders that were put on the import path, the latest last


def load_factory(reference: str, base: Path) -> Callable[..., nn.Module]:
    """The function or class that makes a network.

    Args:
        reference: A zoo name or "package.module:factory"; the attribute may be dotted ("nets:Small.make").
        base: Folder of the pipeline file; for a user's reference it goes to the front of `sys.path` and stays there.

    Raises:
        ConfigError: there is no such name, module or attribute, the import fails, or what is found cannot be called.
    """
    check_name(reference)
    if reference in ZOO:
        module_name, _, attribute = ZOO[reference].partition(":")
        zoo_factory: Callable[..., nn.Module] = getattr(importlib.import_module(module_name), attribute)
        return zoo_factory
    module_name, _, attribute = reference.partition(":")
    base = base.resolve()
    _put_first(base)
    module = _import(module_name, base)
    factory = _attribute(module, attribute, reference)
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
    except (Exception, SystemExit) as error:
        written = ", ".join(f"{name}={value!r}" for name, value in given.items())
        message = f"{reference} with ({written}) failed: {_blame(error, base.resolve())}"
        raise ConfigError(message, hint=_look_at_args(reference, parameters)) from error
    if not isinstance(network, nn.Module):
        message = f"{reference} gave a value of type {type(network).__name__}, not a torch.nn.Module"
        raise ConfigError(message, hint="a factory returns the network itself")
    return network


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
    top = reference.partition(":")[0].partition(".")[0]
    digest = module_digest(top, base)
    if digest is None:
        raise _not_found(top, base.resolve())
    return digest


def _put_first(base: Path) -> None:
    """Put a folder first on the import path, and forget what an earlier one gave under names that this one has too."""
    importlib.invalidate_caches()
    entry = str(base)
    if sys.path[:1] != [entry]:
        sys.path[:] = [entry, *(p for p in sys.path if p != entry)]
    earlier = [folder for folder in _bases if folder != base]
    _bases[:] = [*earlier, base]
    for name in set(_modules_in(base)) - {"edgekd"} if earlier else ():
        spec = getattr(sys.modules.get(name), "__spec__", None)
        if spec is not None and any(place.parent in earlier for place in places_of(spec)):
            for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
                del sys.modules[loaded]


def _import(name: str, base: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise _not_found(missing, base) from None
        hint = f"to see all of it: cd {base} && python -c 'import {name}'"
        if missing:
            hint = f"install the package that has the module {missing!r}, or put it beside the pipeline file"
        raise ConfigError(f"the module {name} does not import: {_blame(error, base)}", hint=hint) from error


def _not_found(name: str, base: Path) -> ConfigError:
    parent, _, _ = name.rpartition(".")
    if parent in sys.modules:
        folders = getattr(sys.modules[parent], "__path__", ())
        known = [f"{parent}.{module.name}" for module in pkgutil.iter_modules(folders)]
    else:
        known = _modules_in(base)
    otherwise = f"put {name.replace('.', '/')}.py into the folder of the pipeline file, or install the package"
    return ConfigError(
        f"there is no module {name!r} in {base} or on the import path", hint=_near(name, known, otherwise)
    )


def _attribute(module: ModuleType, attribute: str, reference: str) -> Any:
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = {n: v for n, v in vars(module).items() if not n.startswith("_") and callable(v)}
        own = [n for n, v in public.items() if getattr(v, "__module__", None) == module.__name__]
        hint = _near(attribute, own or public, "define a function or class there that makes the network")
        raise ConfigError(f"{reference}: the module {module.__name__} has no {attribute!r}", hint=hint) from None


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
        hint = f"give it under `args:`; known are: {', '.join(names)}"
        raise ConfigError(f"{reference} needs the argument {missing[0]!r}", hint=hint)


def _look_at_args(reference: str, parameters: Mapping[str, inspect.Parameter] | None) -> str:
    shown = {n: "" if p.default is p.empty else f"={p.default!r}" for n, p in (parameters or {}).items()}
    known = ", ".join(f"{name}{default}" for name, default in shown.items())
    return f"look at its `args:`; it takes ({known})" if known else f"look at the `args:` of {reference}"


def _blame(error: BaseException, base: Path) -> str:
    """The place in the user's code, the kind of the exception and the first line of what it says."""
    said = str(error).strip().splitlines()
    what = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(Path(error.filename), base)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    places = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [place for place in places if _is_theirs(place[0])]
    own = [place for place in theirs if place[0].is_relative_to(base)] or theirs
    return f"{_shown(own[-1][0], base)}:{own[-1][1]}: {what}" if own else what


def _is_theirs(path: Path) -> bool:
    """Whether a file is a user's: not ours, not of an installed package, not Python's own (frozen)."""
    return path.is_absolute() and not path.is_relative_to(_OUR_FOLDER) and not is_installed(path)


def _shown(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else path


def _modules_in(folder: Path) -> list[str]:
    return [module.name for module in pkgutil.iter_modules([str(folder)])]


def _near(word: str, options: Iterable[str], otherwise: str) -> str:
    """The nearest option or, if there are few, all of them; else another way out."""
    known = sorted(options)
    hint = did_you_mean(word, known) if known else otherwise
    return otherwise if len(known) > 12 and hint.startswith("known are") else hint
