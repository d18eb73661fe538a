"""Where Q/DQ goes: one policy whose graph every engine can execute in 8 bits."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch
from torch.fx import GraphModule, Node

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError, quiet
from edgekd.quantize.fake_quant import FakeQuant
from edgekd.quantize.float_outputs import serving_only
from edgekd.quantize.functional import BATCH_NORM, own_batch_norm
from edgekd.quantize.settings import LayerBits, QuantizationSettings

with quiet():  # torchao speaks while it is imported
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        QuantizationSpec,
        Quantizer,
        SharedQuantizationSpec,
    )

AnySpec: TypeAlias = QuantizationSpec | SharedQuantizationSpec

_aten = torch.ops.aten
TRANSPOSED = {_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input}
CONVOLUTIONS = {_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default} | TRANSPOSED
WEIGHTED = CONVOLUTIONS | {_aten.linear.default}
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
NORMS = {BATCH_NORM, own_batch_norm}
_PRODUCTS = {_aten.mul.Tensor, _aten.mul_.Tensor}
_GATES = {_aten.sigmoid.default, _aten.sigmoid_.default, _aten.hardsigmoid.default, _aten.hardsigmoid_.default}
_CONCATENATIONS = {_aten.cat.default}
# What hands values on, in another place or size.
_MOVES = {
    _aten.view.default,
    _aten.reshape.default,
    _aten.flatten.using_ints,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.contiguous.default,
    _aten.dropout.default,
    _aten.upsample_bilinear2d.vec,
    _aten.upsample_nearest2d.vec,
}
_HALF_GRID = 127  # levels: the upper half of int8
_OVERFLOWS_NOT = 7  # bits: 2 * 255 * 63 < 2^15
# What gives no negative values; a clamp does where its lower end says so.
_NOT_NEGATIVE = {_aten.relu.default, _aten.relu_.default, _aten.softmax.int} | _GATES
_CLAMPS = {_aten.hardtanh.default, _aten.clamp.default, _aten.clamp_min.default}
_MAPS_MOVES = {_aten.upsample_bilinear2d.vec, _aten.upsample_nearest2d.vec, _aten.dropout.default}


class Placement(Quantizer):
    """Marks what is quantized: inputs and weights of convolutions and linear layers, both inputs of additions of
    what convolutions gave and of products with a gate (squeeze-and-excitation), inputs of pools, what is concatenated
    of what convolutions gave (all on one grid, so that engines only copy), and the output of each convolution (after
    its activation), without which an engine leaves it in float.

    In a transformer that leaves norms, softmax and the products of attention in float, and the sums along its skips:
    few of their channels are a hundred times as large as the others, and engines gain nothing from them in 8 bits.

    Args:
        outputs: names of what the network returns, for `float_outputs`.

    Raises (annotate):
        ConfigError: a layer or an output that the settings name is not there.
    """

    def __init__(self, settings: QuantizationSettings, outputs: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._settings, self._outputs = settings, outputs
        self._floats: set[Node] = set()
        self._from_zero: set[Node] = set()

    def annotate(self, model: GraphModule) -> GraphModule:
        check_names(self._settings.layers, {module_of(n) for n in model.graph.nodes if n.op == "call_function"})
        if self._settings.float_outputs:
            self._floats = serving_only(model, self._settings.float_outputs, self._outputs, WEIGHTED)
        if self._settings.relu_levels != _HALF_GRID:
            joined = [{node, *parts} for node in model.graph.nodes if (parts := self._joined(node))]
            self._from_zero = _from_zero(model, joined)
        for node in model.graph.nodes:
            inputs = self._inputs(node)
            if inputs:
                _annotate(node, inputs, None)
        for node in model.graph.nodes:
            if node.target in CONVOLUTIONS and self._choice(node) != "float":
                last = _after_activation(node)
                if not any(user.op == "output" for user in last.users):
                    _annotate(last, {}, self._activation(last))
        for node in model.graph.nodes:
            if parts := self._joined(node):
                self._on_one_grid(node, parts)
        return model

    def _joined(self, node: Node) -> list[Node]:
        """The maps that a concatenation puts on one grid, none where it does not."""
        if node.target not in _CONCATENATIONS or self._choice(node) == "float":
            return []
        parts = [part for part in dict.fromkeys(_nodes(node.args[0])) if _is_float(part)]
        return parts if len(parts) > 1 and any(map(_of_maps, parts)) and _is_read(node) else []

    def _on_one_grid(self, node: Node, parts: Sequence[Node]) -> None:
        """Concatenated maps share one scale, with what they become: TensorRT takes no other."""
        shared = SharedQuantizationSpec((parts[0], node))
        first = self._activation(parts[0])
        _annotate(node, {part: first if part is parts[0] else shared for part in parts}, shared)

    def _activation(self, node: Node, bits: int | None = None) -> QuantizationSpec:
        """How a tensor of activations is rounded."""
        return activation_spec(bits or self._settings.activations, from_zero=node in self._from_zero)

    def validate(self, model: GraphModule) -> None:
        """Nothing to check: every annotation is ours."""

    def _choice(self, node: Node) -> LayerBits | Literal["float"]:
        """What the settings say of a node's layer: the last pattern that fits counts, and float outputs before all."""
        if node in self._floats:
            return "float"
        name = module_of(node)
        fitting = [choice for pattern, choice in self._settings.layers.items() if fits(name, pattern)]
        return fitting[-1] if fitting else LayerBits()

    def _inputs(self, node: Node) -> dict[Node, QuantizationSpec]:
        choice = self._choice(node) if node.op == "call_function" else "float"
        if choice == "float":
            return {}
        settings = self._settings
        if node.target in WEIGHTED:
            axis = _output_axis(node) if settings.per_channel else None
            weight = _spec(choice.weights or self._weight_bits(node), axis, weight=True)
            # A weight that is computed (tied, normalised) is an activation of its own; ours are stored parameters.
            given = _node(node.args[0])
            return {given: self._activation(given, choice.activations), _node(node.args[1]): weight}
        if node.target in _BINARY:
            nodes = [a for a in node.args[:2] if isinstance(a, Node) and _is_float(a)]
            nodes = nodes if len(nodes) == 2 and any(map(_of_maps, nodes)) else []
        else:
            nodes = _nodes(node.args[:2]) if _is_gated(node) or node.target in _POOLS else []
        return {given: self._activation(given, choice.activations) for given in nodes}

    def _weight_bits(self, node: Node) -> int:
        """Bits of a layer's weights where `layers` does not say, see `overflow_fix`."""
        fix = self._settings.overflow_fix
        if fix == "auto":  # 2 * 127 * 127 < 2^15: with as few levels after a ReLU only the others can overflow
            fix = "signed_inputs" if self._settings.relu_levels == _HALF_GRID else "all"
        narrow = fix == "all" or (fix == "signed_inputs" and not _never_negative(_node(node.args[0])))
        narrow |= fix in ("signed_inputs", "first_layer") and _reads_input(node)
        return min(self._settings.weights, _OVERFLOWS_NOT) if narrow else self._settings.weights


def activation_spec(bits: int, *, from_zero: bool = False) -> QuantizationSpec:
    """One scale for a tensor of activations; `from_zero`: it is never negative, and its grid begins there."""
    return _spec(bits, None, weight=False, from_zero=from_zero)


def _spec(bits: int, axis: int | None, *, weight: bool, from_zero: bool = False) -> QuantizationSpec:
    """A grid whose observer is our learnable fake-quant module."""
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=FakeQuant.with_args(bits=bits, axis=axis, weight=weight, from_zero=from_zero),
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_tensor_symmetric if axis is None else torch.per_channel_symmetric,
        ch_axis=axis,
    )


def module_of(node: Node) -> str:
    """The name of the module whose code an operation is, in the network as its author wrote it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else node.name


def fits(layer: str, pattern: str) -> bool:
    """Whether a pattern is of a layer, or of a module that it lies in: `block1` is all that `block1` holds."""
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[: n + 1]), pattern) for n in range(len(parts)))


def check_names(patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise ConfigError for a pattern that fits no layer."""
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            raise ConfigError(f"quantize.layers: no layer fits {pattern!r}", hint=did_you_mean(pattern, names))


def _output_axis(node: Node) -> int | None:
    """The axis of a layer's weight that has a scale per index: that of its outputs.

    A transposed convolution has it second; in groups its channels would share scales across them, so it has one scale.
    """
    if node.target not in TRANSPOSED:
        return 0
    return 1 if len(node.args) <= 6 or node.args[6] == 1 else None


def _reads_input(layer: Node) -> bool:
    """Whether a layer reads an input of the network, behind what has no weights (a normalisation, a reshape)."""
    node = _node(layer.args[0])
    while node.op == "call_function" and node.target not in WEIGHTED and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


def _never_negative(node: Node) -> bool:
    """Whether a node gives no negative values whatever the network reads: after a ReLU, moved or pooled since."""
    if node.target in _CLAMPS and len(node.args) > 1 and isinstance(node.args[1], (int, float)) and node.args[1] >= 0:
        return True
    if node.target in _CONCATENATIONS:
        return all(map(_never_negative, _nodes(node.args[0])))
    if node.target in _CLAMPS | _POOLS | _MOVES:
        return _never_negative(_node(node.args[0]))
    return node.target in _NOT_NEGATIVE


def _from_zero(model: GraphModule, joined: Sequence[set[Node]]) -> set[Node]:
    """The tensors that are never negative, but those that share a grid with others; `joined`: which share one."""
    found = {node for node in model.graph.nodes if node.op == "call_function" and _never_negative(node)}
    while any(0 < len(parts & found) < len(parts) for parts in joined):
        for parts in joined:
            if not parts <= found:
                found -= parts
    return found


def _of_maps(node: Node) -> bool:
    """Whether a convolution gave this, or additions, activations and pools of what convolutions gave."""
    while node.op == "call_function" and node.target in FUSED | _BINARY | _POOLS | _CONCATENATIONS | _MAPS_MOVES:
        if node.target in _BINARY | _CONCATENATIONS:
            return any(_of_maps(a) for a in node.all_input_nodes)
        node = _node(node.args[0])
    return node.op == "call_function" and (node.target in CONVOLUTIONS or node.target in NORMS)


def _is_gated(node: Node) -> bool:
    """Whether maps are multiplied by one number for each channel (N, C, 1, 1), as in squeeze-and-excitation."""
    sides = _nodes(node.args[:2])
    if node.target not in _PRODUCTS or len(sides) != 2 or not all(map(_is_float, sides)):
        return False
    gates = [side for side in sides if side.target in _GATES]
    others = [side for side in sides if side not in gates]
    if len(gates) != 1 or len(others) != 1:
        return False
    shape = gates[0].meta["val"].shape
    return len(shape) > 2 and all(size == 1 for size in shape[2:]) and _of_maps(others[0])


def _is_read(node: Node) -> bool:
    """Whether an 8-bit operation reads a node, behind what only moves values."""
    for user in node.users:
        if user.target in WEIGHTED | _POOLS | _BINARY:
            return True
        if user.target in _MOVES | _CONCATENATIONS and _is_read(user):
            return True
    return False


def _after_activation(node: Node) -> Node:
    """The node itself, or the activation that is its only user."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in FUSED else node


def _is_float(node: Node) -> bool:
    """Whether a node computes real numbers: sums of indices and masks are not to be rounded."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _annotate(node: Node, inputs: Mapping[Node, AnySpec], output: AnySpec | None) -> None:
    before = node.meta.get("quantization_annotation")
    node.meta["quantization_annotation"] = QuantizationAnnotation(
        input_qspec_map=dict(inputs) or (before.input_qspec_map if before else {}), output_qspec=output, _annotated=True
    )


def _nodes(arguments: object) -> list[Node]:
    """Those of some arguments that are nodes."""
    assert isinstance(arguments, (tuple, list))
    return [argument for argument in arguments if isinstance(argument, Node)]


def _node(argument: object) -> Node:
    assert isinstance(argument, Node)
    return argument
