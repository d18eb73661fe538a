"""Small things that every rewriting of an ONNX graph needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import onnx
from onnx import NodeProto

M = TypeVar("M")


def copied(message: M) -> M:
    """A copy of a model, a node, or a part of them."""
    made: Any = type(message)()
    made.CopyFrom(message)
    return made


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model is written in."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")))


def nodes_of(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """All nodes of a graph, with those of the graphs inside them (If, Loop)."""
    for node in graph.node:
        yield node
        for inner in _graphs_in(node):
            yield from nodes_of(inner)


def inner_names(node: NodeProto) -> list[str]:
    """Names that graphs inside a node (If, Loop) read from outside, or make themselves."""
    graphs = _graphs_in(node)
    return [name for graph in graphs for inner in graph.node for name in _read_names(inner)] + [
        value.name for graph in graphs for value in graph.output
    ]


def read_nodes(nodes: Sequence[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Those of a graph's nodes, in their order, that its outputs need."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(_read_names(node))
            kept.append(node)
    return kept[::-1]


def drop_unused(graph: onnx.GraphProto) -> None:
    """Take out the initializers that nothing reads."""
    used = {name for node in graph.node for name in _read_names(node)} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _graphs_in(node: NodeProto) -> list[onnx.GraphProto]:
    return [graph for a in node.attribute for graph in (*([a.g] if a.HasField("g") else []), *a.graphs)]


def _read_names(node: NodeProto) -> list[str]:
    return [*node.input, *inner_names(node)]
