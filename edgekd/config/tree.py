"""A YAML 1.2 file as plain values, with the line and column of every key and item."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.errors import ConfigError
from edgekd.files import sha256_bytes

Location = tuple[str | int, ...]

_MAX_BYTES = 1_000_000
_MAX_DEPTH = 40
_MAX_NODES = 100_000
_MAX_INT = 1 << 63
_SCALARS = {"str", "null", "bool", "int", "float", "timestamp"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file: where (a path of keys), what, and how to mend it."""

    location: Location
    message: str
    hint: str


@dataclass
class Tree:
    """Plain values of a YAML file, where each came from, and the bytes of the file that was read.

    `origins`: what `came_from` named in place of lines.
    """

    source: str
    value: Any
    positions: dict[Location, str] = field(default_factory=dict)
    content: bytes = b""
    origins: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Digest of the file as it was read: who edits it afterwards does not change what runs."""
        return sha256_bytes(self.content)

    def where(self, location: Location) -> str:
        """`file:line:column` of a location, or of the nearest thing around it."""
        known = self.known(location)
        return self.positions.get(known, f"{self.source}:1:1")

    def known(self, location: Location) -> Location:
        """The location without what validation put in (tags of unions) and without missing keys."""
        path: Location = ()
        for part in location:
            if (*path, part) in self.positions:
                path = (*path, part)
        return path

    def came_from(self, origins: Mapping[Location, str]) -> None:
        """Name what values came from, in place of lines of a file that nobody wrote: that of a location holds below it.

        There has to be one for (), the whole.
        """
        for place in self.positions:
            nearest = next(place[:end] for end in range(len(place), -1, -1) if place[:end] in origins)
            self.positions[place] = origins[nearest]
        self.origins = tuple(origins.values())

    def assign(self, location: Location, value: Any, origin: str) -> None:
        """Set the value at a location (its parents must be mappings or lists); `origin` is where it came from."""
        node = self.value
        for part in location[:-1]:
            if isinstance(node, dict) and node.get(part) is None:
                node[part] = {}
            node = node[part]
        node[location[-1]] = value
        for known in [k for k in self.positions if k[: len(location)] == location]:
            del self.positions[known]
        self.positions[location] = origin


def load_tree(path: Path) -> Tree:
    """Read a pipeline file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or uses YAML beyond plain data.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_BYTES} bytes", hint="a pipeline file is a page of YAML")
        content = path.read_bytes()
        text = content.decode()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}",
            hint="give the path of a pipeline file, e.g. pipelines/digits.yaml",
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text", hint="give the path of a YAML pipeline file") from None
    tree = parse_tree(text, str(path))
    tree.content = content
    return tree


def parse_tree(text: str, source: str) -> Tree:
    """Parse YAML 1.2 text; `source` names it in messages. Raises ConfigError as `load_tree` does."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor that is used twice: the later one counts, as YAML says
            root = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = (error.problem or error.context or "not valid YAML").splitlines()[0]
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        hint = (
            "indent with spaces, not with tabs" if "'\\t'" in problem else "check indentation, colons and quotes there"
        )
        raise ConfigError(f"{where}: not valid YAML: {problem}", hint=hint) from None
    except (YAMLError, RecursionError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{source}: not valid YAML: {first}", hint="a pipeline file is plain YAML text") from None
    tree = Tree(source, None)
    if root is not None:
        tree.value = _Reader(tree).read(root, ())
    return tree


def raise_problems(tree: Tree, problems: Iterable[Problem]) -> None:
    """Raise one ConfigError that holds every problem, in the order of the file; return if there is none."""
    lines = [(f"{tree.where(p.location)}: {_message(tree, p)}", p.hint) for p in problems]
    if lines:
        unique = tuple(dict.fromkeys(sorted(lines, key=lambda line: _numbers(line[0]))))
        raise ConfigError(unique[0][0], hint=unique[0][1], problems=unique)


def _message(tree: Tree, problem: Problem) -> str:
    """A problem's message; where an option stands for its place in the file, without that place."""
    place = f"{'.'.join(map(str, problem.location))}: "
    return problem.message.removeprefix(place) if tree.origins else problem.message


def _numbers(text: str) -> tuple[int, int]:
    parts = text.split(": ", maxsplit=1)[0].rsplit(":", 2)
    return (int(parts[1]), int(parts[2])) if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() else (0, 0)


class _Reader:
    """Turns composed YAML nodes into plain values; only plain data is let through."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.nodes = 0

    def fail(self, node: Any, message: str, hint: str) -> ConfigError:
        return ConfigError(f"{self.position(node)}: {message}", hint=hint)

    def position(self, node: Any) -> str:
        return f"{self.tree.source}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def read(self, node: Any, location: Location) -> Any:
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        self.tree.positions.setdefault(location, self.position(node))
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise self.fail(node, "too much of it", "aliases that repeat aliases? a pipeline file is a page of YAML")
        if len(location) > _MAX_DEPTH:
            raise self.fail(node, "nested too deeply", "an alias that contains itself? write it out")
        if isinstance(node, MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self.mapping(node, location)
        if isinstance(node, SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.read(item, (*location, i)) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self.scalar(node)
        raise self.fail(node, f"the YAML tag {node.tag} is not allowed", "a pipeline file is plain data")

    def mapping(self, node: Any, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str) or key == "<<":
                raise self.fail(key_node, "only plain words can be keys", "write `name: value`")
            if key in result:
                raise self.fail(key_node, f"the key {key!r} stands here twice", "remove one of the two")
            self.tree.positions[*location, key] = self.position(key_node)
            result[key] = self.read(value_node, (*location, key))
        return result

    def scalar(self, node: Any) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if kind not in _SCALARS:
            raise self.fail(node, f"the YAML tag {node.tag} is not allowed", "a pipeline file is plain data")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind in {"int", "float"}:
            return self.number(node, kind, text.replace("_", ""))
        return text

    def number(self, node: Any, kind: str, text: str) -> int | float | str:
        try:
            if kind == "int":
                whole = int(text, 0) if text.lstrip("+-")[:2].lower() in {"0x", "0o", "0b"} else int(text)
                if abs(whole) >= _MAX_INT:
                    raise self.fail(node, "too large a number", "numbers have at most 63 bits")
                return whole
            value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            return str(node.value)
        if not math.isfinite(value):
            raise self.fail(node, f"{node.value} is not a finite number", "give a finite number")
        return value
