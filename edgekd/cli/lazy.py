"""A group of commands of which only the one that is called gets loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup
from typer.main import get_command


@dataclass(frozen=True)
class Command:
    """Where a command is ("module:function", or "module:app" of a group), and its line in the help."""

    place: str
    help: str

    def load(self, name: str) -> Any:
        """Import the command and make what the command line parser takes."""
        module, _, attribute = self.place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, typer.Typer):
            command: Any = get_command(found)
        else:
            alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            alone.command(name)(found)
            command = get_command(alone)
        command.name = name
        return command


class _Loaded(MutableMapping[str, Any]):
    """Commands by name; a value is imported when it is asked for."""

    def __init__(self, table: Mapping[str, Command]) -> None:
        self._table, self._ready = table, dict[str, Any]()

    def __getitem__(self, name: str) -> Any:
        if name not in self._ready:
            self._ready[name] = self._table[name].load(name)
        return self._ready[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._ready[name] = command

    def __delitem__(self, name: str) -> None:
        del self._ready[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


class LazyGroup(TyperGroup):
    """Shows commands in the order of their table, and loads none for that."""

    table: ClassVar[Mapping[str, Command]] = {}

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Loaded(self.table)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(self.table)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The section of the help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.table.items()])

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C before or after a run's own handling says so in a line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            print("help: the same command goes on from the last finished stage", file=sys.stderr)
            return 130
