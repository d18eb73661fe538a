"""`--set a.b=c`: one value of a pipeline file replaced from the command line (torch-free)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgekd.config import Tree, parse_tree
from edgekd.config.settings import did_you_mean
from edgekd.data.sources import SOURCES
from edgekd.errors import ConfigError


def apply_override(tree: Tree, text: str, *, known: Collection[str]) -> None:
    """Apply one `--set a.b=c`: stages by name, items of lists by number, `data.path` in the given data source.

    Args:
        tree: the pipeline file, a mapping; it is changed.
        text: what stands behind `--set`.
        known: keys that may stand at the top of the file.

    Raises:
        ConfigError: the address leads nowhere, or the value is not YAML.
    """
    address, equals, value_text = text.partition("=")
    where = f"--set {address}"
    parts = address.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: is not of the form a.b=c", hint="e.g. --set distill.epochs=5")
    if not value_text.strip():
        raise ConfigError(f"{where}=: has no value", hint=f"give one, or {address}=null for none")
    value = _from_here(parts[-1], parse_tree(value_text, where).value)
    path: list[str | int] = list(_addressed(tree, parts, where, known))
    node: Any = tree.value
    for index, part in enumerate(path[:-1]):
        if isinstance(node, list):
            part = path[index] = _item(node, part, where)  # noqa: PLW2901
        node = node.get(part) if isinstance(node, dict) else node[int(part)]
        if node is None:
            break  # a mapping is made there
        if not isinstance(node, (dict, list)):
            raise ConfigError(
                f"{where}: {part!r} holds a plain value, nothing can be set inside it", hint="shorten the address"
            )
    if isinstance(node, list):
        path[-1] = _item(node, path[-1], where)
    tree.assign(tuple(path), value, where)


def _from_here(key: str, value: Any) -> Any:
    """A path on the command line starts where the command runs, if it leads somewhere from there, else at the file."""
    if key in ("path", "weights") and isinstance(value, str) and Path(value).exists():
        return str(Path(value).absolute())
    return value


def _addressed(tree: Tree, parts: list[str], where: str, known: Collection[str]) -> list[str | int]:
    """The address in the file: what begins with a stage's name lies in the list of stages."""
    if parts[0] in known:
        return list(_data_path(tree, parts, where))
    stages = tree.value.get("stages")
    items = [item if isinstance(item, dict) else {item: None} for item in stages] if isinstance(stages, list) else []
    for index, item in enumerate(items):
        if parts[0] in item:
            tree.value["stages"][index] = item  # `- export` becomes `- export: {}`: it can be set into
            return ["stages", index, *parts]
    names = [str(next(iter(item))) for item in items if item]
    if parts[0] == "stages":
        raise ConfigError(f"{where}: stages are set by name", hint=f"e.g. --set {(names or ['teacher'])[0]}.epochs=5")
    raise ConfigError(
        f"{where}: {parts[0]!r} is neither a key nor a stage of this file",
        hint=did_you_mean(parts[0], [*names, *known]),
    )


def _data_path(tree: Tree, parts: list[str], where: str) -> list[str]:
    """`data.path` is the path of the one data source that the file gives."""
    data = tree.value.get("data")
    if parts != ["data", "path"] or not isinstance(data, dict):
        return parts
    sources = [name for name in SOURCES if name in data]
    with_path = [name for name in sources if name != "digits"]
    if len(with_path) != 1:
        given = " and ".join(f"`{name}`" for name in sources) or "none"
        hint = "give the whole address, e.g. --set data.npz.path=FILE" if with_path else "digits come with scikit-learn"
        raise ConfigError(f"{where}: the data source has no one path (given: {given})", hint=hint)
    return ["data", with_path[0], "path"]


def _item(node: list[Any], part: str | int, where: str) -> int:
    """An item's number in a list of the file."""
    if isinstance(part, int) or (part.isascii() and part.isdigit()):
        index = int(part)
        if index < len(node):
            return index
    raise ConfigError(f"{where}: there is no item {part!r} in a list of {len(node)}", hint="items count from 0")
