"""Where Q/DQ goes: one policy whose graph every engine can execute in 8 bits."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch.fx import GraphModule, Node

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError, quiet
from edgekd.quantize.fake_quant import FakeQuant
from edgekd.quantize.settings import LayerBits, QuantizationSettings

with quiet():  # torchao speaks while it is imported
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

_aten = torch.ops.aten
WEIGHTED = {_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default}
# Operations with two tensor inputs that engines run in 8 bits only when both are quantized.
_BINARY = {_aten.add.Tensor, _aten.add_.Tensor}
_POOLS = {
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_max_pool2d.default,
    _aten.mean.dim,
}
# Activations that engines fuse into the layer before them, so that its output is quantized after them.
FUSED = {_aten.relu.default, _aten.relu_.default, _aten.hardtanh.default, _aten.hardtanh_.default, _aten.clamp.default}
_NORMS = {_aten.batch_norm.default}  # where it was not folded
CONVOLUTIONS = WEIGHTED - {_aten.linear.default}


class Placement(Quantizer):
    """Marks what is quantized: inputs and weights of convolutions and linear layers, both inputs of additions of
    what convolutions gave, inputs of pools, and the output of each convolution (after its activation), without which
    an engine leaves it in float.

    In a transformer that leaves norms, softmax and the products of attention in float, and the sums along its skips:
    few of their channels are a hundred times as large as the others, and engines gain nothing from them in 8 bits.

    Raises (annotate):
        ConfigError: a layer that the settings name is not there.
    """

    def __init__(self, settings: QuantizationSettings) -> None:
        super().__init__()
        self._settings = settings

    def annotate(self, model: GraphModule) -> GraphModule:
        check_names(self._settings.layers, {module_of(n) for n in model.graph.nodes if n.op == "call_function"})
        for node in model.graph.nodes:
            inputs = self._inputs(node)
            if inputs:
                _annotate(node, inputs, None)
        for node in model.graph.nodes:
            if node.target in CONVOLUTIONS and self._choice(node) != "float":
                last = _after_activation(node)
                if not any(user.op == "output" for user in last.users):
                    _annotate(last, {}, activation_spec(self._settings.activations))
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every annotation is ours."""

    def _choice(self, node: Node) -> LayerBits | Literal["float"]:
        """What the settings say of a node's layer: the last pattern that fits counts."""
        name = module_of(node)
        fitting = [choice for pattern, choice in self._settings.layers.items() if fnmatchcase(name, pattern)]
        return fitting[-1] if fitting else LayerBits()

    def _inputs(self, node: Node) -> dict[Node, QuantizationSpec]:
        if node.op != "call_function":
            return {}
        choice = self._choice(node)
        if choice == "float":
            return {}
        settings = self._settings
        activation = activation_spec(choice.activations or settings.activations)
        if node.target in WEIGHTED:
            weight = weight_spec(choice.weights or settings.weights, per_channel=settings.per_channel)
            # A weight that is computed (tied, normalised) is an activation of its own; ours are stored parameters.
            return {_node(node.args[0]): activation, _node(node.args[1]): weight}
        if node.target in _BINARY:
            nodes = [a for a in node.args[:2] if isinstance(a, Node) and _is_float(a)]
            return dict.fromkeys(nodes, activation) if len(nodes) == 2 and any(map(_of_maps, nodes)) else {}
        if node.target in _POOLS:
            return {_node(node.args[0]): activation}
        return {}


def activation_spec(bits: int) -> QuantizationSpec:
    """One scale for a tensor of activations."""
    return _spec(bits, None, weight=False)


def weight_spec(bits: int, *, per_channel: bool) -> QuantizationSpec:
    """One scale for each output channel of a weight, or one for all."""
    return _spec(bits, 0 if per_channel else None, weight=True)


def _spec(bits: int, axis: int | None, *, weight: bool) -> QuantizationSpec:
    """A grid whose observer is our learnable fake-quant module."""
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=FakeQuant.with_args(bits=bits, axis=axis, weight=weight),
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_tensor_symmetric if axis is None else torch.per_channel_symmetric,
        ch_axis=axis,
    )


def module_of(node: Node) -> str:
    """The name of the module whose code an operation is, in the network as its author wrote it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else node.name


def check_names(patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise ConfigError for a pattern that fits no layer."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"quantize.layers: no layer fits {pattern!r}", hint=did_you_mean(pattern, names))


def _of_maps(node: Node) -> bool:
    """Whether a convolution gave this, or additions, activations and pools of what convolutions gave."""
    while node.op == "call_function" and node.target in FUSED | _BINARY | _POOLS:
        if node.target in _BINARY:
            return any(_of_maps(a) for a in node.args[:2] if isinstance(a, Node))
        node = _node(node.args[0])
    return node.op == "call_function" and (node.target in CONVOLUTIONS or node.target in _NORMS)


def _after_activation(node: Node) -> Node:
    """The node itself, or the activation that is its only user."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in FUSED else node


def _is_float(node: Node) -> bool:
    """Whether a node computes real numbers: sums of indices and masks are not to be rounded."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _annotate(node: Node, inputs: dict[Node, QuantizationSpec], output: QuantizationSpec | None) -> None:
    before = node.meta.get("quantization_annotation")
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=inputs or (before.input_qspec_map if before else {}), output_qspec=output, _annotated=True
    )


def _node(argument: object) -> Node:
    assert isinstance(argument, Node)
    return argument
