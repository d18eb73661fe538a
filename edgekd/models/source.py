"""Digests of Python source: they change with the code, not with comments, docstrings or layout; nothing is imported."""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from edgekd.errors import ConfigError
from edgekd.files import sha256_bytes, sha256_file

_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "node_modules"})


def source_digest(paths: Iterable[Path], *, root: Path | None = None) -> str:
    """Hex sha256 over the syntax trees of Python files; a folder stands for every .py file below it.

    Strings that stand as a statement (docstrings of any kind) and comments do not count. The names of the files do,
    relative to `root` (by default the folder that all of them share), so the digest is the same on every machine that
    has the same Python version.

    Raises:
        ConfigError: a file cannot be read or is not valid Python (file:line).
    """
    return _digest(_python_files(paths), root, lambda path: sha256_bytes(ast.dump(parse(path)).encode()))


def module_digest(name: str, base: Path) -> str | None:
    """Digest of the code of a top-level module, found from the folder `base` or on the import path; None if not found.

    A package counts with every file in it. A module of the user's own brings along what it imports, by an import
    statement, from beside it. A package that was installed is digested by its bytes, which is as sure and much faster.
    """
    spec = find_module(name, base)
    if spec is None:
        return None
    places = places_of(spec)
    if not places:
        return sha256_bytes(name.encode())  # compiled into the interpreter
    if any(is_installed(place) for place in places) or any(p.is_file() and p.suffix != ".py" for p in places):
        return _digest(_python_files(places), None, sha256_file)
    folder = places[0].parent
    gathered: dict[str, list[Path]] = {name: places}
    queue = [name]
    while queue:
        for imported in sorted(_imports(gathered[queue.pop()]) - gathered.keys() - {"edgekd"}):
            beside = PathFinder.find_spec(imported, [str(folder)])
            if beside is not None and (found := places_of(beside)):
                gathered[imported] = found
                queue.append(imported)
    return source_digest([place for found in gathered.values() for place in found], root=folder)


def find_module(name: str, base: Path) -> ModuleSpec | None:
    """Where Python would find a top-level module, `base` being first on the import path; nothing is imported."""
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(name, [str(base.resolve()), *sys.path])
    if spec is not None:
        return spec
    try:
        return importlib.util.find_spec(name)  # finders of editable installs
    except ValueError:  # a module without a spec, as __main__ is
        return None


def places_of(spec: ModuleSpec) -> list[Path]:
    """The folders of a package, or the file of a module; nothing for what is part of the interpreter."""
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.has_location and spec.origin else []


def is_installed(place: Path) -> bool:
    """Whether a file or folder is part of an installed package or of Python."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(place.parts)
    return installed or place.is_relative_to(sysconfig.get_path("stdlib"))


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file without strings that stand as a statement.

    Raises:
        ConfigError: it cannot be read or is not valid Python (file:line).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a user's string is no matter of ours
            tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from None
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno or 1}: not valid Python: {error.msg}", hint="mend the file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}:1: not valid Python: {error}", hint="mend the file") from None
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if isinstance(statements, list):
                setattr(node, block, [s for s in statements if not _bare_string(s)])
    return tree


def _bare_string(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _digest(files: list[Path], root: Path | None, digest_of: Callable[[Path], str]) -> str:
    if root is None:
        root = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    root = _absolute(root)
    total = hashlib.sha256()
    for name, path in sorted((os.path.relpath(path, root).replace(os.sep, "/"), path) for path in files):
        total.update(f"{name}\0{digest_of(path)}\n".encode())
    return total.hexdigest()


def _python_files(paths: Iterable[Path]) -> list[Path]:
    """Every file once, with folders replaced by the Python files below them."""
    files: dict[Path, None] = {}
    for path in map(_absolute, paths):
        files |= dict.fromkeys(_below(path) if path.is_dir() else [path])
    return list(files)


def _absolute(path: Path) -> Path:
    """Without `..`, and with symbolic links left as they are: where they lead differs between machines."""
    return Path(os.path.abspath(path))


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("."))
        yield from (Path(where, name) for name in sorted(names) if name.endswith(".py"))


def _imports(places: list[Path]) -> set[str]:
    names: set[str] = set()
    for path in _python_files(places):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names
