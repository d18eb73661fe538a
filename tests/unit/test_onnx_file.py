"""What a written file must be: one file, not too large, with the names, the opset and the open batch axis asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from edgekd.errors import ExportError
from edgekd.export import onnx_file
from edgekd.export.onnx_file import check_file, load, save, write_onnx

EXAMPLE = {"x": torch.randn(2, 6)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "net.onnx"
    write_onnx(nn.Linear(6, 3).eval(), EXAMPLE, ("y",), path, opset=20, metadata={})
    return path


def fixed(value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for given in (*model.graph.input, *model.graph.output):
            if given.name == value:
                given.type.tensor_type.shape.dim[0].dim_value = 2

    return change


def rename(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "z"


def older(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def outside(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fixed("x"), "the batch axis of 'x' is fixed"),
        (fixed("y"), "the batch axis of 'y' is fixed"),
        (rename, r"has the inputs \['z'\], asked for were \['x'\]"),
        (older, "asked for opset 20, the exporter wrote 18"),
        (outside, "keeps weights in another file"),
    ],
)
def test_a_file_that_is_not_as_asked_is_refused(
    file: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    check_file(file, inputs=["x"], outputs=["y"], opset=20)
    model = load(file)
    change(model)
    (tmp_path / "changed.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=words):
        check_file(tmp_path / "changed.onnx", inputs=["x"], outputs=["y"], opset=20)


def test_a_network_that_one_file_cannot_hold_is_refused_with_its_size(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_BYTES", 4000)
    network = nn.Linear(100, 20).eval()  # 2020 values of 4 bytes
    with pytest.raises(ExportError, match=r"large\.onnx would be 0\.00 GB") as found:
        write_onnx(network, {"x": torch.randn(2, 100)}, ("y",), tmp_path / "large.onnx", opset=20, metadata={})
    assert found.value.hint and "smaller" in found.value.hint
    assert not (tmp_path / "large.onnx").exists()
    small = load(file)
    save(small, tmp_path / "small.onnx")
    small.graph.initializer[0].raw_data = bytes(5000)
    with pytest.raises(ExportError, match="one ONNX file holds"):
        save(small, tmp_path / "grown.onnx")


def test_a_network_that_fixes_its_batch_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 6) + 1

    with pytest.raises(ExportError):
        write_onnx(Fixed().eval(), EXAMPLE, ("y",), tmp_path / "fixed.onnx", opset=20, metadata={})


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(nn.functional.pad(x, (1, 1, 1, 1)))
        y = torch.relu(torch.relu(y).clamp(0.0, 4.0))
        return torch.cat((y[:, 2:], y[:, :2]), dim=1).reshape(-1, 4, 64).reshape(-1, 256) * 1.0


def test_rules_that_look_at_the_operation_first_write_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxscript.rewriter import _DEFAULT_REWRITE_RULES

    network, example = Padded().eval(), {"x": torch.randn(2, 2, 8, 8)}

    def written(name: str) -> bytes:
        write_onnx(network, example, ("y",), tmp_path / name, opset=20, metadata={})
        return (tmp_path / name).read_bytes()

    quick = written("quick.onnx")
    changed = [rule._matcher for rule in _DEFAULT_REWRITE_RULES if "match" in vars(rule._matcher)]
    assert len(changed) > 20
    for matcher in changed:
        monkeypatch.delattr(matcher, "match")
    monkeypatch.setattr(onnx_file, "look_first", lambda: None)
    assert written("slow.onnx") == quick
    assert {"Pad", "Mul"}.isdisjoint(node.op_type for node in load(tmp_path / "quick.onnx").graph.node)
