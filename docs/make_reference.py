"""Writes docs/reference/: every command, stage, option, knowledge and scheme, from the docstrings and the settings.

    python docs/make_reference.py            write the pages
    python docs/make_reference.py --check    exit 1 where a page is not what the sources say

The pages are committed, so that they can be read without building the site; a test holds them to the sources.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from edgekd.cli.listing import LISTS
from edgekd.cli.main import COMMANDS, app

FOLDER = Path(__file__).parent / "reference"
SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:")
FAMILIES = {
    "response": "Response: what a teacher's outputs say",
    "intermediate": "Intermediate: what its layers hold",
    "relation": "Relation: how samples lie to each other",
    "information": "Mutual information",
}
BLOCKS = ("pipeline", "data", "train", "stages", "targets", "gates")


def docstring(thing: object) -> list[str]:
    """A Google-style docstring as Markdown lines: paragraphs as they are, the entries of a section as a list."""
    lines: list[str] = []
    section = ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line in SECTIONS:
            section = line.removesuffix(":")
            lines += [f"{section}:", ""]
        elif section and (entry := re.fullmatch(r"    (\w+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            section = section if line.startswith(" ") or not line else ""
            lines.append(line.strip())
    return [*lines, ""]


def table(options: Iterable[Mapping[str, Any]]) -> list[str]:
    """Options as a table: name, type, default, what it does."""
    rows = [f"| `{row['name']}` | {_cell(row['type'])} | {_default(row)} | {_cell(row['help'])} |" for row in options]
    return ["| option | type | default | |", "|---|---|---|---|", *rows, ""] if rows else []


def _default(row: Mapping[str, Any]) -> str:
    if row["required"]:
        return "required"
    return "" if row["default"] is None else f"`{_cell(row['default'])}`"


def _cell(value: object) -> str:
    text = {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return text.replace("|", "\\|")


def knowledge() -> Iterator[str]:
    import edgekd.distill.knowledge  # noqa: F401  registers them
    from edgekd.distill.knowledge_settings import KNOWLEDGES
    from edgekd.train.knowledge import knowledge_named

    yield from ["# Knowledge: what is taught", ""]
    yield from ["`knowledge: [kd, {crd: {weight: 0.8}}]` in `distill:` names any of these; they combine.", ""]
    yield from [
        "What each gave on real images: [results](../results.md). One of your own: [extending](../extending.md).",
        "",
    ]
    rows = {row["name"]: row for row in LISTS["knowledge"]() if row["name"] in KNOWLEDGES}
    named = {name: knowledge_named(name) for name in rows}
    for family, title in FAMILIES.items():
        yield from [f"## {title}", ""]
        for name, found in named.items():
            if found.family == family:
                yield from [f"### `{name}`", "", rows[name]["help"], "", *docstring(found.function)]
                if found.needs:
                    yield from [f"Needs: {', '.join(sorted(found.needs))} of each sample.", ""]
                yield from table(rows[name]["options"])
    left = [name for name, found in named.items() if found.family not in FAMILIES]
    assert not left, f"families of {left} have no title here"


def schemes() -> Iterator[str]:
    from edgekd.distill.schemes import choose

    yield from ["# Schemes: who teaches whom", ""]
    yield from ["`distill: {scheme: ..}`. When to take which, with examples: [schemes](../schemes.md).", ""]
    for row in LISTS["schemes"]():
        function = getattr(choose, {"self": "self_distillation"}.get(row["name"], row["name"]), None)
        yield from [f"## `{row['name']}`", "", row["help"][:1].upper() + row["help"][1:] + ".", ""]
        yield from docstring(function) if function else ()  # `offline` is one phase, and has no function of its own
        yield from table(row["options"])


def options() -> Iterator[str]:
    yield from ["# Every option of a pipeline file", ""]
    for block in BLOCKS:
        for row in LISTS[block]():
            title = f"stage `{row['name']}`" if block == "stages" else f"`{row['name']}`"
            yield from [f"## {title}", "", row["help"], "", *table(row["options"])]


def models() -> Iterator[str]:
    yield from ["# Built-in networks", ""]
    yield from ["Your own is `package.module:factory`. These serve as students, and for trying things out.", ""]
    yield from [
        "| name | where |",
        "|---|---|",
        *(f"| `{row['name']}` | `{row['help']}` |" for row in LISTS["models"]()),
        "",
    ]


def commands() -> Iterator[str]:
    yield from ["# The command line", ""]
    root: Any = typer.main.get_command(app)
    for name in COMMANDS:
        command = root.get_command(None, name)
        found = getattr(command, "commands", None)
        parts = {f"{name} {word}": inner for word, inner in found.items()} if found else {name: command}
        for words, part in parts.items():
            yield from _command(words, part)


def _command(words: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["edgekd", words, *(str(p.metavar or p.name.upper()) for p in arguments), "[options]"])
    yield from [f"## `edgekd {words}`", "", (command.help or "").strip(), "", "```text", usage, "```", ""]
    rows = [(str(p.metavar or p.name.upper()), getattr(p, "help", "")) for p in arguments]
    rows += [(", ".join([*p.opts, *p.secondary_opts]), p.help) for p in command.params if p.param_type_name == "option"]
    yield from ["| | |", "|---|---|", *(f"| `{name}` | {_cell(help_ or '')} |" for name, help_ in rows), ""]


PAGES = {"knowledge": knowledge, "schemes": schemes, "options": options, "models": models, "commands": commands}


def page(name: str) -> str:
    """The whole text of a page."""
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(PAGES[name]()))
    title, _, rest = text.partition("\n")
    return f"{title}\n\n<!-- Written by docs/make_reference.py: change the docstrings. -->\n{rest.rstrip()}\n"


def main() -> int:
    stale = [name for name in PAGES if not (path := FOLDER / f"{name}.md").is_file() or path.read_text() != page(name)]
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name}.md is not what the sources say: run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / f"{name}.md").write_text(page(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
