"""Layers of a captured network under the names that its author gave them: knowledge of features can tap them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.fx import GraphModule, Node

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError


class Place(nn.Identity):
    """Stands in a graph where a module of the original network began or ended; hooks on it see what went through."""


def add_places(owner: nn.Module, graph: GraphModule, references: Iterable[str]) -> None:
    """Make layers of a graph reachable as submodules of `owner`, which calls it.

    Args:
        references: `layer2` for what that module gives, `fc:in` for what it is given.

    Raises:
        ConfigError: no module of that name computed anything in the graph.
    """
    for reference in dict.fromkeys(references):
        path, _, given = reference.partition(":")
        inside = [node for node in graph.graph.nodes if path in _paths(node)]
        if not inside:
            names = {name for node in graph.graph.nodes for name in _paths(node) if name}
            raise ConfigError(f"the quantized network has no layer {path!r}", hint=did_you_mean(path, names))
        place = _at(owner, path)
        target = f"place_{path.replace('.', '_')}"
        graph.add_submodule(target, place)
        node = _first_input(inside[0]) if given else inside[-1]
        with graph.graph.inserting_after(node):
            stop = graph.graph.call_module(target, (node,))
        for user in [user for user in node.users if user is not stop]:
            user.replace_input_with(node, stop)
    graph.recompile()


def without_places(graph: GraphModule) -> GraphModule:
    """Take them out again, in place."""
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), Place):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _paths(node: Node) -> list[str]:
    return [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _first_input(node: Node) -> Node:
    """What the first operation of a module reads."""
    found = node.args[0]
    assert isinstance(found, Node)
    return found


def _at(owner: nn.Module, path: str) -> Place:
    """The place of that dotted path below a module; those on the way to it are made, too."""
    for name in path.split("."):
        child = getattr(owner, name, None)
        if not isinstance(child, Place):
            child = Place()
            owner.add_module(name, child)
        owner = child
    assert isinstance(owner, Place)
    return owner
