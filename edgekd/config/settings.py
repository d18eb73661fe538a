"""The base class of every option: frozen, typed, documented, and strict about what it does not know."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from edgekd.config.docstrings import docstrings
from edgekd.config.tree import Location, Problem


class Settings(BaseModel):
    """Options of one component. The docstring under a field is its help text."""

    # Most of these are never validated in a run: the validator of each is built when it is first asked for.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True, protected_namespaces=())

    def canonical(self) -> dict[str, Any]:
        """The settings as plain values with every default written out: what a stage's key is made of."""
        return self.model_dump(mode="json", by_alias=True)


S = TypeVar("S", bound=Settings)
_WORDS = {
    "Input should": "it should",
    "String should": "it should",
    "be an object": "be a mapping, e.g. {key: value}",
    "a valid dictionary": "a mapping, e.g. {key: value}",
    "a valid array": "a list, e.g. [a, b]",
    "a valid tuple": "a list, e.g. [a, b]",
    "a valid string": "text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}


def validate(cls: type[S], value: Any, location: Location = ()) -> tuple[S | None, list[Problem]]:
    """Make settings from plain values; instead of raising, return every problem with its place in the file."""
    if value is None:
        value = {}
    if not isinstance(value, dict):
        return None, [Problem(location, f"expected a mapping, found {_short(value)}", f"options: {_options(cls)}")]
    try:
        # JSON is the strict reading in which a list may still become a tuple and a text a path.
        return cls.model_validate_json(json.dumps(value)), []
    except ValidationError as error:
        details = _one_per_place(value, error.errors(include_url=False))
        return None, [_problem(cls, location, detail) for detail in details]


def describe(cls: type[Settings]) -> list[dict[str, Any]]:
    """Every field of a Settings class: name, type, default, whether it must be given, and its help text.

    Fields without `repr` are left out: what they hold is written under other names in a file.
    """
    rows: list[dict[str, Any]] = []
    texts = docstrings(cls)
    for name, field in ((name, field) for name, field in cls.model_fields.items() if field.repr):
        row: dict[str, Any] = {"name": field.alias or name, "type": _type_name(field.annotation)}
        row["required"] = field.is_required()
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            row["default"] = default.canonical() if isinstance(default, Settings) else _plain(default)
        row["help"] = " ".join((field.description or texts.get(name, "")).split())
        inside = [c for c in nested(field.annotation) if c is not cls]
        if inside:
            row["fields"] = {c.__name__: describe(c) for c in inside}
        rows.append(row)
    return rows


def did_you_mean(word: str, options: typing.Iterable[str]) -> str:
    """A help line: the nearest option if one is near, else all of them."""
    known = sorted(options)
    if not known:
        return "it takes none"
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"


def _one_per_place(value: Any, details: Sequence[Any]) -> list[Any]:
    """The details with places as the file has them, and of those that the members of a union gave, the nearest one."""
    chosen: dict[Location, Any] = {}
    for detail in details:
        place, union = _place(value, detail["loc"], missing=detail["type"] == "missing")
        # What a member of a union says of something inside the value is nearer than "it should be a text".
        if union not in chosen or len(place) > len(chosen[union]["loc"]):
            chosen[union] = {**detail, "loc": place}
    return list(chosen.values())


def _place(value: Any, location: Location, *, missing: bool) -> tuple[Location, Location]:
    """A location without the tags of unions; and the same up to the first tag (the whole of it, if it has none)."""
    place: Location = ()
    union: Location | None = None
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif not (last and missing):
            union = place if union is None else union
            continue
        place = (*place, part)
    return place, place if union is None else union


def _problem(cls: type[Settings], prefix: Location, detail: Any) -> Problem:
    location: Location = (*prefix, *detail["loc"])
    name = ".".join(str(part) for part in location) or "the file"
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(cls, detail["loc"][:-1])
        return Problem(
            location,
            f"unknown key {detail['loc'][-1]!r} in {_parent(location)}",
            did_you_mean(str(detail["loc"][-1]), known),
        )
    if kind == "missing":
        return Problem(location, f"{name} is missing", f"add `{detail['loc'][-1]}:` there")
    if kind == "value_error":
        message = str(detail["ctx"]["error"])
        text, _, hint = message.partition(" | ")
        return Problem(location, f"{_parent((*location, ''))}: {text}", hint or "see `edgekd list stages`")
    hint = in_words(detail["msg"])
    if kind == "literal_error":
        options = [str(o).strip("'") for o in detail["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        hint = did_you_mean(given, options) if isinstance(given, str) else f"known are: {', '.join(options)}"
    return Problem(location, f"{name}: {_short(given)} is not allowed here", hint)


def in_words(message: str) -> str:
    """What a validator says in the words of YAML and the command line instead of those of JSON and Python."""
    message = message.removeprefix("Value error, ").partition(", unable to parse")[0]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message[0].lower() + message[1:]


def _parent(location: Location) -> str:
    return ".".join(str(part) for part in location[:-1]) or "the file"


def _fields_at(cls: type[Settings], location: Location) -> set[str]:
    """Names of the fields that may stand at a location below a class; unions give the fields of all members."""
    classes = [cls]
    for part in location:
        following = [
            inner
            for c in classes
            for name, field in c.model_fields.items()
            if part in (name, field.alias)
            for inner in nested(field.annotation)
        ]
        if following:
            classes = following
    return {field.alias or name for c in classes for name, field in c.model_fields.items()}


def nested(annotation: Any) -> Iterator[type[Settings]]:
    """Settings classes inside a type: members of a union, items of a container."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if issubclass(annotation, Settings):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from nested(argument)


def _options(cls: type[Settings]) -> str:
    def name_of(name: str, field: FieldInfo) -> str:
        return field.alias or name

    return ", ".join(sorted(name_of(n, f) for n, f in cls.model_fields.items())) or "none"


_TYPE_WORDS: dict[Any, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "path",
    type(None): "null",
}


def _type_name(annotation: Any) -> str:
    """A type in words: `integer | null`, `list of text`, `"auto" | "none"`, the name of a block of settings."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(json.dumps(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        names = list(dict.fromkeys(_type_name(a) for a in arguments if a is not Ellipsis))
        return f"list of {names[0]}" if Ellipsis in arguments else f"{len(arguments)} x {' | '.join(names)}"
    if origin is dict:
        return f"mapping to {_type_name(arguments[1])}"
    return _TYPE_WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Settings):
        return value.canonical()
    return value if isinstance(value, (str, int, float, bool, type(None), dict)) else str(value)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
