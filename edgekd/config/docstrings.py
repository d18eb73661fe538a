"""The docstrings under the fields of a class, read from its source when somebody asks for help.

pydantic reads them while it makes a class, which costs every command a quarter of a second for all the options there
are; a few commands show them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterator

from pydantic import BaseModel


def docstrings(cls: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a class and its bases, by field name; fields without one are left out."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _of_module(base.__module__).get(base.__qualname__, {})
    return {name: text for name, text in found.items() if name in cls.model_fields}


@functools.cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """The texts under the fields of every class of a module, by the class's qualified name."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError, SyntaxError):  # made by a call, built in, or typed at a prompt
        return {}
    return {qualname: _fields(node) for qualname, node in _classes(tree, "")}


def _classes(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        inside = prefix
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, child
            inside = f"{prefix}{child.name}."
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = f"{prefix}{child.name}.<locals>."
        yield from _classes(child, inside)


def _fields(node: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            text = after.value
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[field.target.id] = inspect.cleandoc(text.value)
    return found
