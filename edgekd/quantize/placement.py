"""Where Q/DQ goes: one policy whose graph every engine can execute in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from edgekd.quantize.fake_quant import FakeQuant
from edgekd.quantize.settings import QuantizationSettings

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
CONVOLUTIONS = WEIGHTED - {_aten.linear.default}


@dataclass(frozen=True)
class Specs:
    """The two grids of a network: activations (per tensor) and weights (per output channel)."""

    activation: QuantizationSpec
    weight: QuantizationSpec


def specs(settings: QuantizationSettings) -> Specs:
    """Quantization specs whose observers are our learnable fake-quant modules."""
    return Specs(_spec(settings.activations, None, weight=False), _spec(settings.weights, 0, weight=True))


def _spec(bits: int, axis: int | None, *, weight: bool) -> QuantizationSpec:
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=FakeQuant.with_args(bits=bits, axis=axis, weight=weight),
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_tensor_symmetric if axis is None else torch.per_channel_symmetric,
        ch_axis=axis,
    )


class Placement(Quantizer):
    """Marks what is quantized: inputs and weights of convolutions and linear layers, both inputs of additions,
    inputs of pools, and the output of each convolution (after its activation), without which
    an engine leaves it in float."""

    def __init__(self, settings: QuantizationSettings) -> None:
        super().__init__()
        self.specs = specs(settings)

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in model.graph.nodes:
            inputs = self._inputs(node)
            if inputs:
                _annotate(node, inputs, None)
        for node in model.graph.nodes:
            if node.target in CONVOLUTIONS:
                last = _after_activation(node)
                if not any(user.op == "output" for user in last.users):
                    _annotate(last, {}, self.specs.activation)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every annotation is ours."""

    def _inputs(self, node: Node) -> dict[Node, QuantizationSpec]:
        if node.op != "call_function":
            return {}
        activation = self.specs.activation
        if node.target in WEIGHTED:
            weight = node.args[1]
            # A weight that is computed (tied, normalised) is an activation of its own; ours are stored parameters.
            return {_node(node.args[0]): activation, _node(weight): self.specs.weight}
        if node.target in _BINARY:
            nodes = [a for a in node.args[:2] if isinstance(a, Node) and _is_float(a)]
            return dict.fromkeys(nodes, activation) if len(nodes) == 2 else {}
        if node.target in _POOLS:
            return {_node(node.args[0]): activation}
        return {}


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
