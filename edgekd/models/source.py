"""Digests of Python source: they change with the code, not with comments, docstrings or layout; nothing is imported."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from edgekd.errors import ConfigError
from edgekd.files import sha256_bytes, sha256_file, sha256_json

_SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "node_modules"})
_STANDARD_LIBRARY = (sysconfig.get_path("stdlib"), os.path.dirname(os.__file__))
_parts: dict[str, dict[str, str]] = {}
_IN_KEYS = frozenset({"edgekd", "torch", "numpy"})  # a stage has the code or the version of those that it uses


def source_digest(
    paths: Iterable[Path], *, root: Path | None = None, digest_of: Callable[[Path], str] | None = None
) -> str:
    """Hex sha256 over the syntax trees of Python files; a folder stands for every .py file below it.

    Strings that stand as a statement (docstrings of any kind) and comments do not count. The names of the files do,
    relative to `root` (by default the folder that all of them share), so the digest is the same on every machine that
    has the same Python version.

    Args:
        digest_of: the first of what `code_of` says of a file, from somewhere that remembers it.

    Raises:
        ConfigError: a file cannot be read or is not valid Python (file:line).
    """
    return _digest(_python_files(paths), root, digest_of or (lambda path: code_of(path)[0]))


def module_digest(name: str, base: Path) -> str | None:
    """Digest of the code of a top-level module, found from the folder `base` or on the import path; None if not found.

    A package counts with every Python file in it. A module of the user's own brings along what it imports, by an import
    statement and wherever that lies: other modules of the user's by their code, installed libraries by their version.
    A module that is itself installed is digested by its bytes, which is as sure and much faster.
    """
    importlib.invalidate_caches()
    places = _find(name, base)
    if places is None:
        return None
    if not places:
        return sha256_bytes(name.encode())  # compiled into the interpreter
    if any(map(is_installed, places)):
        return _digest(_python_files(places), None, sha256_file)
    files, libraries = _reached_from(name, base)
    digest = sha256_json({"files": files, "libraries": libraries})
    _parts[digest] = {**files, **libraries}
    return digest


def parts_of(digest: str) -> Mapping[str, str]:
    """What a digest that `module_digest` gave in this process is made of: digests by file, versions by library."""
    return _parts.get(digest, {})


def _reached_from(name: str, base: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the files of a user's module and of what it brings along, and versions of the libraries they import.

    Files are named from the folder that their top-level module lies in, so the names are the same on every machine.
    """
    files: dict[str, str] = {}
    libraries: dict[str, str] = {}
    queue, seen = [name], {name, *_IN_KEYS}
    while queue:
        module = queue.pop()
        places = _find(module, base) or []
        installed = [place for place in places if is_installed(place)]
        for place in (place for place in places if place not in installed):
            root = _absolute(place.parent)
            for path in _python_files([place]):
                digest, imported = code_of(path)
                files.setdefault(_name_in(root, path), digest)  # of two portions Python takes the first
                queue += imported - seen
                seen |= imported
        if installed and module not in sys.stdlib_module_names:
            libraries[module] = _version(module, installed)
    return files, libraries


def _find(name: str, base: Path) -> list[Path] | None:
    """Where Python would find a top-level module, `base` being first on the import path; nothing is imported."""
    spec = PathFinder.find_spec(name, [str(base.resolve()), *sys.path])
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)  # finders of editable installs
        except ValueError:  # a module without a spec, as __main__ is
            return None
    return None if spec is None else [place for place in map(_on_disk, places_of(spec)) if place.exists()]


def _on_disk(place: Path) -> Path:
    """A place, or the archive that it lies in."""
    return next((above for above in place.parents if above.is_file()), place)


def _version(name: str, places: list[Path]) -> str:
    """The installed distributions that a top-level module belongs to, as `name-version`; of no distribution: its bytes.

    `importlib.metadata.packages_distributions` says the same and takes ten times as long.
    """
    line = re.compile(rf"\n{re.escape(name)}(/|\.[^/,]*,|\n)".encode())
    listed = [known for place in places for known in _distributions(place.parent)]
    maybe = [(known, content) for known, content in listed if f"\n{name}".encode() in content]  # quick
    found = sorted({known for known, content in maybe if line.search(content)})
    return " ".join(found) or _digest(_python_files(places), None, sha256_file)


@functools.cache
def _distributions(folder: Path) -> list[tuple[str, bytes]]:
    """What is installed in a folder: `name-version`, and the list of its files or of its top-level modules."""
    found = []
    for info in sorted(folder.glob("*.*-info")):
        lists = [info / "RECORD", info / "top_level.txt"]
        content = b"".join(b"\n" + path.read_bytes() + b"\n" for path in lists if path.is_file())
        found.append((info.stem, content))
    return found


def places_of(spec: ModuleSpec) -> list[Path]:
    """The folders of a package, or the file of a module; nothing for what is part of the interpreter."""
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.has_location and spec.origin else []


def is_installed(place: Path) -> bool:
    """Whether a file or folder is part of an installed package or of Python."""
    installed = not {"site-packages", "dist-packages"}.isdisjoint(place.parts)
    return installed or any(map(place.is_relative_to, _STANDARD_LIBRARY))


def _parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file.

    Raises:
        ConfigError: it cannot be read or is not valid Python (file:line).
    """
    try:
        with warnings.catch_warnings(), _no_collector():
            warnings.simplefilter("ignore")  # an odd escape in a user's string is no matter of ours
            return ast.parse(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from None
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno or 1}: not valid Python: {error.msg}", hint="mend the file") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}:1: not valid Python: {error}", hint="mend the file") from None


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Without the garbage collector, which looks through every new tree and finds no cycle: a third of the time."""
    works = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if works:
            gc.enable()


def _write(node: ast.AST, out: list[str], names: set[str]) -> None:
    """The text of a syntax tree without places and without strings that stand as a statement, and what it imports.

    In one pass and by hand: all of edgekd may have to be read before a run begins, and `ast.dump` after `ast.walk`
    takes thrice as long.
    """
    kind = type(node)
    if isinstance(node, ast.Import):
        names.update(alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names.add(node.module.partition(".")[0])
    out.append(kind.__name__)
    values = vars(node)
    for field in kind._fields:
        value = values.get(field)
        if isinstance(value, ast.AST):
            if value._fields:
                _write(value, out, names)
            else:  # `Load`, `Add`, ..: a third of all
                out.append(type(value).__name__)
        elif isinstance(value, list):
            out.append("[")
            for item in value:
                if not isinstance(item, ast.AST):
                    out.append(repr(item))
                elif not _bare_string(item):
                    _write(item, out, names)
            out.append("]")
        else:
            out.append(repr(value))


def _bare_string(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _digest(files: list[Path], root: Path | None, digest_of: Callable[[Path], str]) -> str:
    if root is None:
        root = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    root, total = _absolute(root), hashlib.sha256()
    for name, path in sorted((_name_in(root, path), path) for path in files):
        total.update(f"{name}\0{digest_of(path)}\n".encode())
    return total.hexdigest()


def _name_in(root: Path, path: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


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


def code_of(path: Path) -> tuple[str, frozenset[str]]:
    """Digest of a file's code, and the top-level modules that it imports; of a compiled module: its bytes, and none."""
    if path.suffix != ".py":
        return sha256_file(path), frozenset()
    out: list[str] = []
    names: set[str] = set()
    tree = _parse(path)
    try:
        _write(tree, out, names)
    except RecursionError as error:
        raise ConfigError(f"{path}:1: nested too deeply: {error}", hint="split its longest expression") from None
    return sha256_bytes(" ".join(out).encode()), frozenset(names)
