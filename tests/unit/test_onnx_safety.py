"""ONNX files from elsewhere: what they keep in other files must lie beside them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import ConfigError
from edgekd.models.onnx_safety import check_onnx


def with_data_in(folder: Path, location: str | None) -> Path:
    """A small valid model below `folder`, its weight in another file unless `location` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    weight = numpy_helper.from_array(np.ones((4, 4), dtype=np.float32), "w")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    path = folder / "model.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    )
    return path


def test_a_file_that_holds_all_and_one_with_data_beside_it_are_taken(tmp_path: Path) -> None:
    check_onnx(with_data_in(tmp_path / "a", None))
    path = with_data_in(tmp_path / "b", "w.bin")
    (tmp_path / "b/w.bin").write_bytes(np.ones(16, dtype=np.float32).tobytes())
    check_onnx(path)


@pytest.mark.parametrize("location", ["../secret", "{outside}", "sub/../../secret"])
def test_data_outside_of_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    path = with_data_in(tmp_path / "model", location.format(outside=secret))
    (tmp_path / "model/sub").mkdir()
    with pytest.raises(ConfigError, match="lies outside of its folder: refused"):
        check_onnx(path)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    path = with_data_in(tmp_path / "model", "w.bin")
    (tmp_path / "model/w.bin").symlink_to(secret)
    with pytest.raises(ConfigError, match="refused"):
        check_onnx(path)
    (tmp_path / "model/w.bin").unlink()
    os.link(secret, tmp_path / "model/w.bin")
    with pytest.raises(ConfigError, match="a hard link: refused"):
        check_onnx(path)
    (tmp_path / "model/w.bin").unlink()
    (tmp_path / "model/other").write_bytes(bytes(64))
    (tmp_path / "model/w.bin").symlink_to(tmp_path / "model/other")
    with pytest.raises(ConfigError, match="a link: refused"):
        check_onnx(path)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'w.bin', which is not there"):
        check_onnx(with_data_in(tmp_path, "w.bin"))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x07" * 50, bytes(range(256))])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not an ONNX file|not valid ONNX"):
        check_onnx(path)


def test_tensors_inside_of_nodes_are_looked_at_too(tmp_path: Path) -> None:
    path = with_data_in(tmp_path, None)
    model = onnx.load(str(path))
    constant = numpy_helper.from_array(np.ones((4, 4), dtype=np.float32), "c")
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    constant.external_data.add(key="location", value="/etc/hostname")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=constant))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="outside of its folder"):
        check_onnx(path)
