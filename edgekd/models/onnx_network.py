"""An ONNX file as a network that can be asked: ONNX Runtime answers, nothing can be learned or looked into."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import ConfigError, UnavailableError, first_line
from edgekd.models.onnx_safety import check_onnx, digest_onnx

_NO_LAYERS = "give the PyTorch network as `model:` (package.module:factory) for that"


class OnnxNetwork(nn.Module):
    """A frozen network: inputs (N, ..) in the order of the file, one output as it is, several by their names.

    `facts` says what cannot be counted on modules: parameters, and bytes of weights.

    Raises (on creation):
        ConfigError: the file is not there, no ONNX, points out of its folder, or ONNX Runtime refuses it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        check_onnx(path)
        self._path = path
        self._session = _open(path)
        given, made = self._session.get_inputs(), self._session.get_outputs()
        self.input_names = tuple(value.name for value in given)
        self._outputs = [value.name for value in made]
        # A file that was written for one batch size is asked in batches of it.
        sizes = {value.shape[0] for value in given if value.shape and isinstance(value.shape[0], int)}
        self._rows = max(sizes, default=None)
        self.facts = _facts(path)
        digest = bytes.fromhex(digest_onnx(path))
        self.register_buffer("sha256", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Ask the file; the answers carry no gradient."""
        arrays = [x.detach().cpu().numpy() for x in inputs]
        count = len(arrays[0])
        parts = [self._ask([a[i : i + size] for a in arrays], size) for i, size in self._batches(count)]
        found = {
            name: torch.from_numpy(parts[0][i] if len(parts) == 1 else _joined([p[i] for p in parts]))[:count]
            for i, name in enumerate(self._outputs)
        }
        found = {name: value.to(inputs[0].device) for name, value in found.items()}
        return found if len(found) > 1 else next(iter(found.values()))

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxNetwork:
        return OnnxNetwork(self._path)

    def _batches(self, count: int) -> list[tuple[int, int]]:
        size = self._rows or count
        return [(start, size) for start in range(0, count, size)]

    def _ask(self, arrays: list[Any], size: int) -> list[Any]:
        import numpy as np

        short = size - len(arrays[0])
        if short:
            arrays = [np.concatenate([a, np.repeat(a[-1:], short, axis=0)]) for a in arrays]
        feeds = dict(zip(self.input_names, arrays, strict=True))
        return list(self._session.run(self._outputs, feeds))


def _joined(parts: list[Any]) -> Any:
    import numpy as np

    return np.concatenate(parts)


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UnavailableError("ONNX Runtime is not installed", hint="pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class but Exception
        raise ConfigError(f"{path}: ONNX Runtime refuses it: {first_line(error)}", hint=_NO_LAYERS) from error


def _facts(path: Path) -> dict[str, int]:
    """Parameters and bytes of all stored float tensors of the file."""
    import onnx

    sizes = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2, onnx.TensorProto.DOUBLE: 8}
    tensors = onnx.load(str(path), load_external_data=False).graph.initializer
    counts = [(math.prod(t.dims), sizes[t.data_type]) for t in tensors if t.data_type in sizes]
    return {"parameters": sum(n for n, _ in counts), "size_bytes": sum(n * size for n, size in counts)}
