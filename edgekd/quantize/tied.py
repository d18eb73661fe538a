"""Convolutions that share a weight, made ready for the folding of BatchNorm.

Folding writes a BatchNorm into the weight of its convolution. Where one weight serves several convolutions that must
happen once for each BatchNorm: uses with the same one keep sharing, others get a copy of the weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule, Node

from edgekd.quantize.placement import CONVOLUTIONS, NORMS, TRANSPOSED


def untie(graph: GraphModule) -> None:
    """Give every BatchNorm behind convolutions of one weight a weight of its own, in place.

    Those behind transposed convolutions in groups are folded at once: torch folds them as if there were one group.
    """
    for node in list(graph.graph.nodes):
        if node.target in TRANSPOSED and _groups(node) > 1 and _norm(node) is not None:
            _fold_groups(graph, node)
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
            zeros = torch.zeros(_value(graph, weight).shape[1 if first.target in TRANSPOSED else 0])
            bias = _stored(graph, first, None, zeros.to(_value(graph, weight)), f"{weight.target}_bias")
        for node in members:
            node.args = (node.args[0], weight, bias, *node.args[3:])


def _norm(convolution: Node) -> object:
    """What is special of the BatchNorm that alone reads a convolution; None where there is none."""
    users = list(convolution.users)
    if len(users) != 1 or users[0].target not in NORMS:
        return None
    return tuple(a.target if isinstance(a, Node) else a for a in users[0].args[1:])


def _fold_groups(graph: GraphModule, convolution: Node) -> None:
    """Write the BatchNorm that reads a transposed convolution in groups into a weight and bias of that use alone."""
    (norm,) = convolution.users
    gamma, beta, mean, var = (_tensor(graph, argument) for argument in norm.args[1:5])
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + float(norm.args[7])) * (1 if gamma is None else gamma)  # type: ignore[arg-type]
    weight_node, bias = convolution.args[1], _tensor(graph, convolution.args[2] if len(convolution.args) > 2 else None)
    assert isinstance(weight_node, Node)
    weight = _value(graph, weight_node)
    # (in, out / groups, ..) as (groups, in / groups, out / groups, ..)
    grouped = weight.unflatten(0, (_groups(convolution), -1))
    folded = grouped * scale.reshape(_groups(convolution), 1, -1, *[1] * (weight.dim() - 2))
    shift = (0 if beta is None else beta) + ((0 if bias is None else bias) - mean) * scale
    names = [f"{weight_node.target}_{part}_of_{convolution.name}" for part in ("folded", "shift")]
    new_weight = _stored(graph, convolution, weight_node, folded.flatten(0, 1), names[0])
    new_bias = _stored(graph, convolution, None, shift, names[1])
    convolution.args = (convolution.args[0], new_weight, new_bias, *convolution.args[3:])
    norm.replace_all_uses_with(convolution)
    graph.graph.erase_node(norm)


def _tensor(graph: GraphModule, argument: object) -> torch.Tensor | None:
    """A parameter or buffer that a node hands on."""
    if not isinstance(argument, Node):
        return None
    parent, _, leaf = str(argument.target).rpartition(".")
    found = getattr(graph.get_submodule(parent), leaf)
    assert isinstance(found, torch.Tensor)
    return found.detach()


def _groups(convolution: Node) -> int:
    """Groups of a transposed convolution."""
    groups = convolution.args[6] if len(convolution.args) > 6 else 1
    assert isinstance(groups, int)
    return groups


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
