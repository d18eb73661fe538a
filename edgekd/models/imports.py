"""A user's code by import string: "package.module:name", found beside the pipeline file or installed.

It is imported here and nowhere else, so here any exception is a user's mistake: it becomes one line that says what
happened, and where in the user's code.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError
from edgekd.models.source import is_installed, module_digest, places_of

_OUR_FOLDER = Path(__file__).resolve().parents[1]
_bases: list[Path] = []  # folders that were put on the import path, the latest last
_beside: dict[Path, list[Path]] = {}  # further ones that belong to them


def load(reference: str, base: Path | None = None, *, otherwise: str = "define it there") -> Any:
    """What an import string names.

    Args:
        reference: "package.module:name"; the name may be dotted ("nets:Small.make").
        base: Folder of the pipeline file, which goes to the front of `sys.path` and stays there; by default the one
            that was put there last.
        otherwise: hint for a name that the module has not.

    Raises:
        ConfigError: there is no such module or name, or the import fails.
    """
    if base is not None:
        put_first(base.resolve())
    module_name, _, attribute = reference.partition(":")
    module = _import(module_name, _base())
    return _attribute(module, attribute, reference, otherwise)


def load_function(reference: str, kind: str, hint: str) -> Callable[..., Any]:
    """A function of the user's.

    Raises:
        ConfigError: as `load`; or what is named cannot be called. `kind` and `hint` say what it should be.
    """
    function = load(reference, otherwise=hint)
    if not callable(function):
        message = f"{kind} {reference} is of type {type(function).__name__}, which cannot be called"
        raise ConfigError(message, hint=hint)
    found: Callable[..., Any] = function
    return found


def digest_of(reference: str, base: Path) -> str:
    """Digest of the code behind an import string: the whole top-level module, see `source.module_digest`.

    Raises:
        ConfigError: there is no such module, or a file is not valid Python (file:line).
    """
    top = reference.partition(":")[0].partition(".")[0]
    digest = module_digest(top, base)
    if digest is None:
        raise _not_found(top, base.resolve())
    return digest


def search_beside(base: Path, folder: Path) -> None:
    """Search a further folder (`python_path:`) for what is named in files of the folder `base`."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    known = _beside.setdefault(base, [])
    if folder not in known:
        known.append(folder)


def _base() -> Path:
    return _bases[-1] if _bases else Path.cwd()


def put_first(base: Path) -> None:
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
        searched = _searched(base)
        holder = next((folder for folder in searched if name.partition(".")[0] in _modules_in(folder)), searched[0])
        hint = f"to see all of it: cd {holder} && python -c 'import {name}'"
        if missing:
            hint = f"install the package that has the module {missing!r}, or put it into {searched[0]}"
        raise ConfigError(f"the module {name} does not import: {blame(error, base)}", hint=hint) from error


def _not_found(name: str, base: Path) -> ConfigError:
    parent, _, _ = name.rpartition(".")
    if parent in sys.modules:
        folders = [Path(folder) for folder in getattr(sys.modules[parent], "__path__", ())]
        known = [f"{parent}.{module}" for folder in folders for module in _modules_in(folder)]
        searched = ", ".join(map(str, folders)) or f"{parent}, which is no package"
    else:
        folders = _searched(base)
        known = [module for folder in folders for module in _modules_in(folder)]
        searched = f"{', '.join(map(str, folders))} or on the import path"
    file = f"{name.rpartition('.')[2]}.py"
    otherwise = f"put {file} into {folders[0]}, or install the package" if folders else f"make a package of {parent}"
    return ConfigError(f"there is no module {name!r} in {searched}", hint=_near(name, known, otherwise))


def _searched(base: Path) -> list[Path]:
    """The folders of the user's that modules come from: that of the pipeline file, if any are in it, and further ones.

    The file that `compress` writes lies beside its results; the modules are where the command was given.
    """
    folders = [base, *_beside.get(base, ())]
    return [folder for folder in folders if _modules_in(folder)] or folders[-1:]


def _attribute(module: ModuleType, attribute: str, reference: str, otherwise: str) -> Any:
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = {n: v for n, v in vars(module).items() if not n.startswith("_") and callable(v)}
        own = [n for n, v in public.items() if getattr(v, "__module__", None) == module.__name__]
        hint = _near(attribute, own or public, otherwise)
        raise ConfigError(f"{reference}: the module {module.__name__} has no {attribute!r}", hint=hint) from None


def blame(error: BaseException, base: Path | None = None) -> str:
    """The place in the user's code, the kind of the exception and the first line of what it says."""
    base = base or _base()
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
