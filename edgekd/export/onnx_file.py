"""PyTorch -> one ONNX file: dynamic batch, named inputs and outputs, metadata, nothing of this machine inside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from edgekd.errors import ExportError, first_line, quiet

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
    metadata: Mapping[str, str],
) -> None:
    """Export a network (eval mode, or converted to Q/DQ) to `path`.

    Args:
        example: named inputs in the order of the network's forward, at least two samples each.
        metadata: texts stored in the file's metadata_props.

    Raises:
        ExportError: the network cannot be captured or written, or the opset that came out is another one.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    module = _Positional(network, outputs).train(False)
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
    clean(model, metadata)
    save(model, path)
    written = next(entry.version for entry in model.opset_import if entry.domain == "")
    if written != opset:
        raise ExportError(
            f"asked for opset {opset}, the exporter wrote {written}", hint=f"set export.opset to {written}"
        )


def clean(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace all metadata by `metadata`, and strip what the exporter noted about source files of this machine."""
    model.producer_name, model.producer_version = _PRODUCER, ""
    model.doc_string = ""
    del model.metadata_props[:]
    for key in sorted(metadata):
        model.metadata_props.add(key=key, value=metadata[key])
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
    """Check a model fully and write it as one file."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(
            f"{path.name}: not valid ONNX: {first_line(error)}", hint="please report this network"
        ) from error
    path.write_bytes(model.SerializeToString(deterministic=True))


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that must hold all its data itself."""
    return onnx.load(str(path), load_external_data=False)
