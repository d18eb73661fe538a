"""PyTorch -> one ONNX file: dynamic batch, named inputs and outputs, metadata, nothing of this machine inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edgekd.errors import ExportError, first_line, quiet
from edgekd.export.metadata import stamp
from edgekd.export.preprocessing import Affine, fuse
from edgekd.export.rules import look_first

LARGEST_BYTES = (1 << 31) - 1  # what protobuf can write as one message
_PRODUCER = "edgekd"


class _Positional(nn.Module):
    """A network whose outputs come as a tuple in a fixed order: what ONNX names one by one."""

    def __init__(self, network: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.outputs = outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = self.network(*inputs)
        if isinstance(result, dict):
            return tuple(result[name] for name in self.outputs)
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def train(self, mode: bool = True) -> _Positional:
        """Converted graphs have one mode and refuse to be asked for another."""
        self.training = mode
        return self


def write_onnx(
    network: nn.Module,
    example: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    path: Path,
    *,
    opset: int,
    metadata: Mapping[str, Any],
    raw: Mapping[str, Affine] | None = None,
) -> None:
    """Export a network (eval mode, or converted to Q/DQ) to `path`, and check what was written.

    Args:
        example: named inputs in the order of the network's forward, at least two samples each.
        metadata: facts that the file says of itself (metadata.py).
        raw: inputs that take raw frames (preprocessing.py), and how these are normalised.

    Raises:
        ExportError: the network cannot be captured or written, is too large for one file, or what came out is not what
            was asked for (`check_file`).
    """
    check_size(network, path.name)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    module = _Positional(network, outputs).train(False)
    look_first()
    try:
        with quiet():
            program = torch.onnx.export(
                module,
                tuple(example.values()),
                dynamo=True,
                opset_version=opset,
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=(tuple({0: batch} for _ in example),),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds, all of them about the user's network
        raise ExportError(
            f"the network cannot be written as ONNX: {first_line(error)}",
            hint="an operation without an ONNX form? write it with standard ones in the network's forward",
        ) from error
    assert program is not None
    model = program.model_proto
    clean(model)
    stamp(model, {**metadata, "opset": opset})
    save(fuse(model, raw) if raw else model, path)
    check_file(path, inputs=list(example), outputs=outputs, opset=opset)


def check_size(network: nn.Module, name: str) -> None:
    """Raise ExportError if all parameters and buffers, each once, do not fit one file; `name` is what it would be."""
    _refuse_too_large(sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers())), name)


def clean(model: onnx.ModelProto) -> None:
    """Remove all metadata, and strip what the exporter noted about source files of this machine."""
    model.producer_name, model.producer_version = _PRODUCER, ""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check a model fully and write it as one file.

    Raises:
        ExportError: it is not valid, keeps data in other files, or is too large for one.
    """
    _refuse_too_large(sum(len(tensor.raw_data) for tensor in _tensors(model.graph)), path.name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{path.name}: not valid ONNX: {first_line(error)}", hint="please report this network"
        ) from error
    content = model.SerializeToString(deterministic=True)
    _refuse_too_large(len(content), path.name)
    path.write_bytes(content)


def check_file(path: Path, *, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> None:
    """Assert of a written file what everything behind it relies on.

    Raises:
        ExportError: its names, its opset or its batch axis are not as asked, or it keeps data in other files.
    """
    model = load(path)
    written = next((entry.version for entry in model.opset_import if entry.domain == ""), None)
    if written != opset:
        raise ExportError(
            f"asked for opset {opset}, the exporter wrote {written}", hint=f"set export.opset to {written}"
        )
    report = "please report this network"
    for kind, asked, values in (("inputs", inputs, model.graph.input), ("outputs", outputs, model.graph.output)):
        found = [value.name for value in values]
        if found != list(asked):
            raise ExportError(f"{path.name} has the {kind} {found}, asked for were {list(asked)}", hint=report)
        for value in values:
            dims = value.type.tensor_type.shape.dim
            if not dims or not dims[0].dim_param:
                size = dims[0].dim_value if dims else "none"
                raise ExportError(
                    f"{path.name}: the batch axis of {value.name!r} is fixed ({size})",
                    hint="let the network's forward compute sizes from its input, e.g. x.flatten(1)",
                )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise ExportError(f"{path.name} keeps weights in another file", hint=report)


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that must hold all its data itself."""
    return onnx.load(str(path), load_external_data=False)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph: weights, constants, and those of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _refuse_too_large(size_bytes: int, name: str) -> None:
    if size_bytes > LARGEST_BYTES:
        raise ExportError(
            f"{name} would be {size_bytes / 1e9:.2f} GB, and one ONNX file holds {LARGEST_BYTES / 1e9:.2f} GB at most",
            hint="an edge device wants a smaller network: distill it into a smaller student",
        )
