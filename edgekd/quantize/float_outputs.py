"""What serves certain outputs of a captured network alone, and so stays float with them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError
from edgekd.train.world import named_outputs


def serving_only(
    graph: GraphModule, wanted: Collection[str], names: tuple[str, ...], weighted: Collection[object]
) -> set[Node]:
    """Nodes that serve no output but the wanted ones, back to the first tensor that another output reads.

    Where all outputs are wanted nothing parts them from the rest: then of each its last weighted layers, behind which
    there is no other, and what follows them.

    Args:
        names: of the outputs, as `named_outputs` has them.
        weighted: operations with weights.

    Raises:
        ConfigError: there is no such output.
    """
    for name in wanted:
        if name not in names:
            raise ConfigError(f"quantize.float_outputs: no output is called {name!r}", hint=did_you_mean(name, names))
    (end,) = (node for node in graph.graph.nodes if node.op == "output")
    found: Mapping[str, Any] = named_outputs(_structured(graph, end), names)  # nodes in place of tensors
    others = _before(found[name] for name in names if name not in wanted)
    serving = _before(found[name] for name in wanted)
    if others:
        return serving - others
    return set().union(*(_tail(_before([found[name]]), weighted) for name in wanted))


def _structured(graph: GraphModule, end: Node) -> object:
    """What the network returns, with nodes in place of tensors."""
    codegen = graph.graph._codegen
    flat = end.args[0]
    if not isinstance(codegen, _PyTreeCodeGen) or codegen.pytree_info.out_spec is None:
        return flat
    return pytree.tree_unflatten(
        list(flat) if isinstance(flat, (tuple, list)) else [flat], codegen.pytree_info.out_spec
    )


def _before(nodes: Iterable[Node]) -> set[Node]:
    """Nodes and everything that they are computed from."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _tail(serving: set[Node], weighted: Collection[object]) -> set[Node]:
    """Of the nodes behind an output: weighted ones that no other follows, and what follows those."""
    follows: dict[Node, bool] = {}  # whether a weighted layer comes after
    behind: set[Node] = set()
    ordered = [node for node in next(iter(serving)).graph.nodes if node in serving]
    for node in reversed(ordered):
        readers = [user for user in node.users if user in serving]
        follows[node] = any(follows[user] or user.target in weighted for user in readers)
    last = {node for node in ordered if node.target in weighted and not follows[node]}
    for node in ordered:
        if node in last or any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    return behind
