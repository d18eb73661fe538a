"""Biases in the steps in which engines keep them: int32 multiples of the scale of a layer's input times its weight's.

ONNX Runtime rounds the biases of its 8-bit layers so. With few bits these steps are coarse: a network that was
calibrated and trained with them answers there as it does in PyTorch.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.fx import GraphModule

from edgekd.quantize.fake_quant import BiasGrid
from edgekd.quantize.graph import input_quant, layers_of, weight_quant


def add_bias_grids(graph: GraphModule) -> None:
    """Let every layer whose input and weight are rounded read its bias through a `BiasGrid`, in place."""
    for number, layer in enumerate(layers_of(graph)):
        given, weight = input_quant(graph, layer.node), weight_quant(graph, layer.node)
        if layer.bias is None or given is None or weight is None:
            continue
        name = f"bias_grid_{number}"
        graph.add_submodule(name, BiasGrid(given, weight))
        with graph.graph.inserting_before(layer.node):
            rounded = graph.graph.call_module(name, (layer.node.args[2],))
        layer.node.update_arg(2, rounded)
    graph.recompile()


@torch.no_grad()
def write_biases(graph: GraphModule) -> None:
    """Store every bias as it is rounded and take the grids out, in place."""
    readers = Counter(node.target for node in graph.graph.nodes if node.op == "get_attr")
    for node in list(graph.graph.nodes):
        grid = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(grid, BiasGrid):
            continue
        (bias,) = node.args
        name = str(bias.target)
        rounded = grid(graph.get_parameter(name))
        if readers[bias.target] == len(bias.users) == 1:
            graph.get_parameter(name).copy_(rounded)
        else:  # layers with other scales read it, too
            name = f"{name.replace('.', '_')}_{node.target}"
            graph.register_parameter(name, nn.Parameter(rounded.clone()))
            with graph.graph.inserting_before(node):
                bias = graph.graph.get_attr(name)
        node.replace_all_uses_with(bias)
        graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
