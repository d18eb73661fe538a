"""Convolutions that share a weight, made ready for the folding of BatchNorm.

Folding writes a BatchNorm into the weight of its convolution. Where one weight serves several convolutions that must
happen once for each BatchNorm: uses with the same one keep sharing, others get a copy of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgekd.quantize.placement import CONVOLUTIONS, NORMS


def untie(graph: GraphModule) -> None:
    """Give every BatchNorm behind convolutions of one weight a weight of its own, in place."""
    uses: dict[str, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.target in CONVOLUTIONS and isinstance(node.args[1], Node) and node.args[1].op == "get_attr":
            uses.setdefault(str(node.args[1].target), []).append(node)
    for convolutions in uses.values():
        if len(convolutions) > 1:
            _part(graph, convolutions)
    graph.recompile()


def _part(graph: GraphModule, convolutions: Sequence[Node]) -> None:
    groups: dict[object, list[Node]] = {}
    for node in convolutions:
        groups.setdefault(_norm(node), []).append(node)
    for number, (norm, members) in enumerate(groups.items()):
        first = members[0]
        weight, bias = first.args[1], first.args[2] if len(first.args) > 2 else None
        assert isinstance(weight, Node)
        if number:
            weight = _stored(graph, first, weight, _value(graph, weight), f"{weight.target}_of_{number}")
            if isinstance(bias, Node):
                bias = _stored(graph, first, bias, _value(graph, bias), f"{bias.target}_of_{number}")
        if norm is not None and bias is None and len(members) > 1:
            # The bias that folding makes is kept with the one that was there: without one, the last use clears it.
            zeros = torch.zeros(_value(graph, weight).shape[0 if _plain(first) else 1])
            bias = _stored(graph, first, None, zeros.to(_value(graph, weight)), f"{weight.target}_bias")
        for node in members:
            node.args = (node.args[0], weight, bias, *node.args[3:])


def _norm(convolution: Node) -> object:
    """What is special of the BatchNorm that alone reads a convolution; None where there is none."""
    users = list(convolution.users)
    if len(users) != 1 or users[0].target not in NORMS:
        return None
    return tuple(a.target if isinstance(a, Node) else a for a in users[0].args[1:])


def _plain(convolution: Node) -> bool:
    return "transpose" not in str(convolution.target)


def _value(graph: GraphModule, node: Node) -> torch.Tensor:
    return graph.get_parameter(str(node.target)).detach()


def _stored(graph: GraphModule, before: Node, like: Node | None, value: torch.Tensor, name: str) -> Node:
    """A new parameter of the graph, beside the module of the one that it is like, and the node that reads it."""
    parent, _, leaf = name.rpartition(".")
    graph.get_submodule(parent).register_parameter(leaf, nn.Parameter(value.clone()))
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    if like is not None:
        node.meta = dict(like.meta)
    return node
