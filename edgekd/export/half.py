"""Half precision: a graph typed in float16 or bfloat16, float32 at its borders and where half precision is not enough.

Precision stands in the graph, node by node, so any engine that takes typed ONNX runs what is written. A tensor that is
read in both precisions exists in both: constants are written twice, a DequantizeLinear is repeated with a scale of the
other type, everything else goes through one Cast.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from edgekd.errors import ExportError
from edgekd.export.graphs import copied, drop_unused, inner_names, nodes_of, read_nodes
from edgekd.export.stays import HALF, NOTHING, QDQ, TINY, Misfits, float_types, key_of, params_of, staying

# The first operator sets with what is needed: bfloat16 convolutions and pooling; Q/DQ with float16 scales.
_BF16_OPSET = 22
_F16_SCALES_OPSET = 19
# Of opset 20: what GridSample's interpolations are called since, and from when the axis of a DFT is an input.
_GRID_MODES = {b"bilinear": b"linear", b"bicubic": b"cubic"}
_NEW_WORDS_OPSET = 20
# What reads its input whatever its type is.
_ANY_TYPE = {"Shape", "Size", "Cast"}


@dataclass(frozen=True)
class Kept:
    """A node that computes in float32, and why."""

    node: str
    why: str


def to_half(model: onnx.ModelProto, kind: str, misfits: Misfits = NOTHING) -> tuple[onnx.ModelProto, list[Kept]]:
    """The graph in half precision, and its nodes that stay in float32.

    Args:
        kind: f16 or bf16. A bf16 graph is of opset 22 at least: below it ONNX has no bfloat16 convolution. A quantized
            f16 graph is of opset 19 at least: below it every scale is float32, and with it nearly every layer.
        misfits: what calibration data showed not to fit float16; see `edgekd.export.misfits`. Of no matter for bf16.

    Raises:
        ExportError: the graph cannot be written in the opset that bf16 needs.
    """
    model = copied(model)
    if kind == "bf16":
        _raise_opset(model, _BF16_OPSET)
    elif any(node.op_type in QDQ for node in model.graph.node):
        _raise_opset(model, _F16_SCALES_OPSET)
    _constants_to_initializers(model.graph)
    if kind == "f16":
        _fill_dead_channels(model.graph)
    types = float_types(model)
    stay = staying(model, kind, misfits, types)
    rewriting = _Rewriting(model, kind, types, stay)
    rewriting.run()
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return model, [Kept(node, why) for node, why in stay.items()]


@dataclass
class _Rewriting:
    """The graph as it is written anew: which tensor is there in which type, and the nodes so far."""

    model: onnx.ModelProto
    kind: str
    types: dict[str, int]
    stay: dict[str, str]
    nodes: list[NodeProto] = field(default_factory=list)
    native: dict[str, int] = field(default_factory=dict)
    names: dict[tuple[str, int], str] = field(default_factory=dict)
    makers: dict[str, NodeProto] = field(default_factory=dict)

    def run(self) -> None:
        """Write every node in its precision, then what the graph gives away in float32."""
        graph = self.model.graph
        self.half = HALF[self.kind].onnx_type
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.suffix = f"_{self.kind}"
        known = {name for node in nodes_of(graph) for name in (*node.input, *node.output, node.name)} | set(self.types)
        while any(name.endswith(self.suffix) for name in known):  # no new name may be one that is taken
            self.suffix += "_"
        for value in graph.input:
            if self._is_float(value.name):
                self._made(value.name, TensorProto.FLOAT)
        for node in list(graph.node):
            self._node(node, key_of(node) in self.stay)
        for value in graph.output:
            if self._is_float(value.name):
                self._named(value.name, TensorProto.FLOAT)
        del graph.node[:]
        graph.node.extend(read_nodes(self.nodes, {value.name for value in graph.output}))
        written = list(self.constants.values())
        del graph.initializer[:]
        graph.initializer.extend(written)
        drop_unused(graph)

    def _node(self, original: NodeProto, stays: bool) -> None:
        node = copied(original)
        params = params_of(node, self.model)
        halved = set() if stays or params is None else {p for p in params.inputs + params.outputs if self._fits(p)}
        for index, name in enumerate(original.input):
            if self._is_float(name):
                wanted = self.half if params is not None and params.inputs[index] in halved else TensorProto.FLOAT
                if node.op_type in _ANY_TYPE:
                    wanted = self.native.get(name, wanted)
                node.input[index] = self._named(name, wanted)
        for name in inner_names(original):
            if self._is_float(name):
                self._named(name, TensorProto.FLOAT)
        self.nodes.append(node)
        if not stays:
            _half_attributes(node, self.half)
        for index, name in enumerate(original.output):
            if self._is_float(name):
                half = params is not None and params.outputs[index] in halved
                node.output[index] = self._made(name, self.half if half else TensorProto.FLOAT)
                self.makers[name] = original

    def _fits(self, param: frozenset[str]) -> bool:
        return HALF[self.kind].onnx_name in param

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def _made(self, name: str, kind: int) -> str:
        """A tensor comes into being in a type; float32 keeps its name, so borders and inner graphs find it."""
        self.native[name] = kind
        self.names[name, kind] = self._called(name, kind)
        return self.names[name, kind]

    def _named(self, name: str, kind: int) -> str:
        """What a tensor is called in a type; made by now if it was not there yet."""
        if (name, kind) not in self.names:
            known = self.names[name, kind] = self._called(name, kind)
            if name in self.constants:
                self._write_constant(name, kind, known)
            elif self._is_repeatable(name):
                self._dequantize_again(self.makers[name], kind, known)
            else:
                source = self.names[name, self.native[name]]
                self.nodes.append(onnx.helper.make_node("Cast", [source], [known], name=f"cast_{known}", to=kind))
        return self.names[name, kind]

    def _called(self, name: str, kind: int) -> str:
        return name if kind == TensorProto.FLOAT else name + self.suffix

    def _is_repeatable(self, name: str) -> bool:
        """A DequantizeLinear whose scale fits both types."""
        maker = self.makers.get(name)
        return maker is not None and maker.op_type == "DequantizeLinear" and key_of(maker) not in self.stay

    def _write_constant(self, name: str, kind: int, known: str) -> None:
        if kind != TensorProto.FLOAT:
            values = HALF[self.kind].round(numpy_helper.to_array(self.constants[name]))
            self.constants[known] = numpy_helper.from_array(values, known)

    def _dequantize_again(self, maker: NodeProto, kind: int, known: str) -> None:
        """The same 8-bit values in another type. A Cast behind would keep an engine from fusing the pair."""
        again = copied(maker)
        again.name, again.output[0] = f"{maker.name}_as_{known}", known
        again.input[1] = self._named(maker.input[1], kind)
        self.nodes.append(again)


def _raise_opset(model: onnx.ModelProto, least: int) -> None:
    """Operators of the sets from 18 to 22 only gained types, but for three.

    GroupNormalization's scales were of groups and are of channels; GridSample's interpolations have other names; the
    axis of a DFT is an input.
    """
    entry = next(e for e in model.opset_import if e.domain in ("", "ai.onnx"))
    own = [node for node in nodes_of(model.graph) if node.domain in ("", "ai.onnx")]
    if entry.version < 21 <= least and any(node.op_type == "GroupNormalization" for node in own):
        raise ExportError(
            f"a GroupNormalization of opset {entry.version} has no bfloat16 form",
            hint=f"set export.opset: {_BF16_OPSET}",
        )
    if entry.version < _NEW_WORDS_OPSET <= least:
        for node in own:
            _say_anew(node, model.graph)
    entry.version = max(entry.version, least)
    model.ir_version = max(model.ir_version, 10)


def _say_anew(node: NodeProto, graph: onnx.GraphProto) -> None:
    """A GridSample or a DFT of opset 18 or 19 in the words of opset 20."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "GridSample" and "mode" in attributes:
        attributes["mode"].s = _GRID_MODES.get(attributes["mode"].s, attributes["mode"].s)
    if node.op_type == "DFT":
        axis = f"{node.output[0]}.axis"
        stands = attributes["axis"].i if "axis" in attributes else 1
        graph.initializer.append(numpy_helper.from_array(np.array(stands, dtype=np.int64), axis))
        inputs, kept = [*node.input, ""][:2], [a for a in node.attribute if a.name != "axis"]
        del node.input[:], node.attribute[:]
        node.input.extend([*inputs, axis])
        node.attribute.extend(kept)


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Float constants that are nodes become initializers: one way to write them twice."""
    kept = []
    for node in graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is not None and tensor.data_type == TensorProto.FLOAT:
            graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _fill_dead_channels(graph: onnx.GraphProto) -> None:
    """Channels whose stored weights are all 0 may have any scale: one that float16 holds, so that nothing stays float.

    The values stay what they are, 0.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not {node.input[0], node.input[1]} <= constants.keys():
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        if scale.ndim != 1 or readers[node.input[1]] > 1 or (scale >= TINY).all():
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        stored = np.moveaxis(numpy_helper.to_array(constants[node.input[0]]), axis, 0).reshape(len(scale), -1)
        filled = np.where((scale < TINY) & (stored == 0).all(1), np.float32(TINY), scale).astype(np.float32)
        constants[node.input[1]].CopyFrom(numpy_helper.from_array(filled, node.input[1]))


def _half_attributes(node: NodeProto, half: int) -> None:
    """What says the type of a node's output: a Cast's target, a ConstantOfShape's value."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = half
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            kind = next(k for k in HALF.values() if k.onnx_type == half)
            attribute.t.CopyFrom(numpy_helper.from_array(kind.round(numpy_helper.to_array(attribute.t))))
