"""Raw frames at the border of a file: the same answers, the same scales, in every flavour."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from data_sets import opened, picture
from onnx import TensorProto, numpy_helper
from PIL import Image
from torch import Tensor, nn

from edgekd.data.table import Normalization
from edgekd.errors import ExportError
from edgekd.export.flavours import tensorrt_violations, to_uint8
from edgekd.export.forks import Fork, first_fork
from edgekd.export.half import to_half
from edgekd.export.metadata import read_metadata, stamp
from edgekd.export.misfits import find_misfits
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.export.parity import run_reference
from edgekd.export.preprocessing import Affine, affine, fuse, raw_frames, raw_inputs, rewrite_behind
from edgekd.export.stays import Misfits
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import QuantizedNetwork, capture, convert
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes.protocol import Build, TensorInfo, noise
from edgekd.stages import compile as compiling
from edgekd.stages import evaluate as evaluating
from edgekd.stages.compile import Order, source_of
from edgekd.stages.feeds import preparation
from edgekd.stages.ladder import engine_fork
from edgekd.stages.places import Places
from edgekd.stages.settings import TargetSettings
from edgekd.stages.tensors import anchors
from edgekd.train.world import Model

HOW = Normalization((0.49, 0.48, 0.44), (0.25, 0.24, 0.26), 1 / 255)
RAW = {"image": affine(HOW.scale, HOW.mean, HOW.std)}
IMAGES = torch.randint(0, 256, (16, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
FRAMES = {"image": raw_frames(IMAGES.numpy())}
FACTS = {"flavour": "int8", "key": "k" * 64, "labels": {"label": ["a", "ü"]}, "accuracy": [{"value": 0.5}]}


def f16(model: onnx.ModelProto) -> onnx.ModelProto:
    return to_half(model, "f16")[0]


class Net(nn.Module):
    """Images through convolutions and a residual; `extra` is a vector beside them."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(12 if extra else 8, 5)

    def forward(self, image: Tensor, extra: Tensor | None = None) -> Tensor:
        x = self.first(image).relu()
        x = (self.second(x) + x).relu().mean((2, 3))
        return self.head(x if extra is None else torch.cat([x, extra], 1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def quantized(network: nn.Module) -> QuantizedNetwork:
    x = HOW.apply(IMAGES)
    return calibrated(network, (x[:2],), [(x,)], QuantizationSettings())


@pytest.fixture(scope="module")
def folder(network: nn.Module, quantized: QuantizedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of both networks, with normalised inputs and with raw frames."""
    made = tmp_path_factory.mktemp("files")
    write(network, made / "f32.onnx")
    write(network, made / "raw.f32.onnx", RAW)
    int8 = convert(quantized)
    write(int8, made / "int8.onnx")
    write(int8, made / "raw.int8.onnx", RAW)
    return made


def write(network: nn.Module, path: Path, raw: dict[str, Affine] | None = None) -> None:
    example = {"image": HOW.apply(IMAGES[:2])}
    write_onnx(network, example, ("logits",), path, opset=20, metadata=FACTS, raw=raw)


def scales(model: onnx.ModelProto) -> list[tuple[str, float]]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantize = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return [(n.op_type, float(np.sum(constants[n.input[1]]))) for n in quantize]


def constant(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def test_a_file_that_takes_frames_says_what_pytorch_says_of_normalised_images(network: nn.Module, folder: Path) -> None:
    (given,) = load(folder / "raw.f32.onnx").graph.input
    dims = given.type.tensor_type.shape.dim
    assert (given.name, given.type.tensor_type.elem_type) == ("image", TensorProto.UINT8)
    assert [dims[0].dim_param != "", *(d.dim_value for d in dims[1:])] == [True, 9, 7, 3]
    with torch.no_grad():
        expected = network(HOW.apply(IMAGES)).numpy()
    for optimized in (False, True):
        found = run_reference(folder / "raw.f32.onnx", FRAMES, optimized=optimized)["logits"]
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_levels_of_a_pixel_come_out_as_pytorch_normalises_them() -> None:
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 1, 1)
    value = onnx.helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 1, 1])
    out = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3, 1, 1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["image"], ["y"])], "g", [value], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    for how in (HOW, Normalization((0.0,), (1.0,), 1 / 255), Normalization((0.5,), (1e-3,), 1 / 255)):
        raw = fuse(model, {"image": affine(how.scale, how.mean, how.std)})
        found = run_reference(raw.SerializeToString(), {"image": raw_frames(levels.numpy())})["y"]
        expected = how.apply(levels).numpy()
        assert np.abs(found - expected).max() < 1e-6 * max(np.abs(expected).max(), 1)
    # Nothing is subtracted where the mean is 0.
    plain = fuse(model, {"image": affine(1 / 255, (0.0,), (1.0,))})
    assert [node.op_type for node in plain.graph.node] == ["Cast", "Transpose", "Mul", "Identity"]


def test_the_quantized_graph_behind_the_frames_keeps_every_scale_in_both_signs(
    quantized: QuantizedNetwork, folder: Path
) -> None:
    plain, raw = load(folder / "int8.onnx"), load(folder / "raw.int8.onnx")
    assert scales(raw) == scales(plain)
    assert tensorrt_violations(raw) == []
    unsigned = to_uint8(raw, quantized.half_steps())
    assert scales(unsigned) == scales(to_uint8(plain, quantized.half_steps()))
    for model, network in ((raw, quantized.in_int8()), (unsigned, quantized)):
        with torch.no_grad():
            expected = network(HOW.apply(IMAGES)).numpy()
        found = run_reference(model.SerializeToString(), FRAMES)["logits"]
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    # The zero point of the first QuantizeLinear is that of a normalised input.
    zero = constant(unsigned, next(n for n in unsigned.graph.node if n.op_type == "QuantizeLinear").input[2])
    assert int(numpy_helper.to_array(zero)) == 128


def test_a_float16_flavour_normalises_in_float32_and_its_network_is_float16(folder: Path) -> None:
    exact = load(folder / "raw.f32.onnx")
    half = rewrite_behind(exact, f16)
    onnx.checker.check_model(half, full_check=True)
    assert raw_inputs(half) == {"image": "image.normalized"}
    assert constant(half, "image.factor").data_type == TensorProto.FLOAT
    weights = [t for t in half.graph.initializer if not t.name.startswith("image.") and len(t.dims) == 4]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}
    found, expected = (run_reference(m.SerializeToString(), FRAMES)["logits"] for m in (half, exact))
    assert 0 < np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()
    assert rewrite_behind(exact, lambda model: model).SerializeToString() == exact.SerializeToString()


def test_what_does_not_fit_float16_behind_the_frames_stays_float(tmp_path: Path) -> None:
    """Contrast is stretched so far that normalised pixels are beyond float16."""
    network = Net().eval()
    with torch.no_grad():
        network.first.weight *= 1e-3
    steep = affine(1 / 255, (0.5,), (1e-6,))
    write_onnx(
        network, {"image": HOW.apply(IMAGES[:2])}, ("logits",), tmp_path / "f32.onnx", opset=20, metadata=FACTS,
        raw={"image": steep},
    )  # fmt: skip
    misfits = find_misfits(tmp_path / "f32.onnx", FRAMES)
    assert "image.normalized" in misfits.tensors
    source = source_of(ordered("f16"), "f16", exported(misfits, tmp_path), tmp_path)
    first = next(n for n in load(tmp_path / "f32.onnx").graph.node if n.op_type == "Conv")
    assert any(one.node == first.name and one.why.startswith("image reaches 5") for one in source.kept)
    found, expected = (run_reference(path, FRAMES)["logits"] for path in (source.path, tmp_path / "f32.onnx"))
    assert np.abs(found - expected).max() < 5e-3 * np.abs(expected).max()


class Table:
    """As many rows as there are images; none is read."""

    def __len__(self) -> int:
        return len(IMAGES)

    def take(self, index: Tensor) -> Table:
        return self


def ordered(precision: str) -> Order:
    return Order("cpu", TargetSettings(runtime="onnxruntime"), "teacher", precision)


def exported(misfits: Misfits, folder: Path) -> Any:
    """The artifact of an export of one file, f32.onnx."""
    facts = {"model": "teacher", "flavour": "f32", "misfits": misfits.facts()}
    return SimpleNamespace(
        facts={"files": {"f32.onnx": facts}, "opset": 20, "raw_inputs": ["image"]}, path=lambda name: folder / name
    )


def test_a_build_tells_the_opset_that_its_file_is_written_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    class Engine:
        def flavour(self, precision: str) -> str:
            return precision

        def compile(self, onnx: Path, into: Path, **more: Any) -> Build:
            seen[into.name] = read_metadata(onnx)["opset"]
            return Build("model.bin", (), (), ())

    monkeypatch.setattr(compiling, "runtime", lambda name: Engine())
    monkeypatch.setattr(compiling, "write_card", lambda folder, source, engine: None)  # this file says little of itself
    shutil.copy(folder / "raw.f32.onnx", tmp_path / "f32.onnx")
    context: Any = SimpleNamespace(
        draft=SimpleNamespace(folder=tmp_path, record={}), common=SimpleNamespace(base=tmp_path)
    )
    export = exported(Misfits(), tmp_path)
    rows = [compiling._build(context, ordered(precision), export, Places({})) for precision in ("f32", "bf16")]
    assert [row["opset"] for row in rows] == [20, 22]
    assert seen == {"cpu.f32": 20, "cpu.bf16": 22}


def test_a_float16_build_is_bisected_in_the_float16_file(
    network: nn.Module, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "raw.f32.onnx", tmp_path / "f32.onnx")
    order = ordered("f16")
    context: Any = SimpleNamespace(
        inputs={"export": exported(Misfits(), tmp_path)}, common=SimpleNamespace(targets={"cpu": order.settings})
    )
    world: Any = SimpleNamespace(models={"teacher": Model(network, ("image",), ("logits",))})
    normal = {"image": HOW.apply(IMAGES).numpy()}
    monkeypatch.setattr(evaluating, "feeds_of", lambda world, names, rows, raw=(): FRAMES if raw else normal)
    build = {"runtime": "onnxruntime", "target": "cpu", "model": "teacher", "precision": "f16", "origin": "f32"}
    table: Any = Table()
    run = []

    def bisect(engine: Any, onnx: Path, feeds: Any, *more: Any, **options: Any) -> Fork | None:
        run.append({tensor.data_type for tensor in load(onnx).graph.initializer if len(tensor.dims) == 4})
        return engine_fork(engine, onnx, feeds, *more, **options)

    monkeypatch.setattr(evaluating, "engine_fork", bisect)
    assert evaluating._fork(context, {**build, "device": "CPU"}, world, table) is None
    assert TensorProto.FLOAT16 in run[0]


def test_metadata_stays_in_every_flavour_and_reads_back(folder: Path, tmp_path: Path) -> None:
    assert read_metadata(folder / "raw.int8.onnx") == {**FACTS, "opset": 20}
    unsigned = to_uint8(load(folder / "raw.int8.onnx"), set())
    stamp(unsigned, {"flavour": "uint8"})
    half = rewrite_behind(load(folder / "raw.f32.onnx"), f16)
    for name, model, flavour in (("u", unsigned, "uint8"), ("h", half, "int8")):
        save(model, tmp_path / f"{name}.onnx")
        assert read_metadata(tmp_path / f"{name}.onnx") == {**FACTS, "opset": 20, "flavour": flavour}
    strange = load(folder / "f32.onnx")
    del strange.metadata_props[:]
    strange.metadata_props.add(key="author", value="somebody")
    save(strange, tmp_path / "strange.onnx")
    assert read_metadata(tmp_path / "strange.onnx") == {}


def test_the_same_network_is_written_in_the_same_bytes(
    network: nn.Module, quantized: QuantizedNetwork, folder: Path, tmp_path: Path
) -> None:
    write(network, tmp_path / "f32.onnx", RAW)
    write(convert(quantized), tmp_path / "int8.onnx", RAW)
    for flavour in ("f32", "int8"):
        assert (tmp_path / f"{flavour}.onnx").read_bytes() == (folder / f"raw.{flavour}.onnx").read_bytes()


def test_inputs_that_are_no_images_stay_and_cannot_be_made_raw(tmp_path: Path) -> None:
    network = Net(extra=True).eval()
    vector = torch.randn(16, 4)
    example = {"image": HOW.apply(IMAGES[:2]), "extra": vector[:2]}
    path = tmp_path / "both.onnx"
    write_onnx(network, example, ("logits",), path, opset=20, metadata={}, raw=RAW)
    kinds = {v.name: v.type.tensor_type.elem_type for v in load(path).graph.input}
    assert kinds == {"image": TensorProto.UINT8, "extra": TensorProto.FLOAT}
    with torch.no_grad():
        expected = network(HOW.apply(IMAGES), vector).numpy()
    found = run_reference(path, {**FRAMES, "extra": vector.numpy()})["logits"]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    for name in ("extra", "nothing"):
        with pytest.raises(ExportError, match=f"'{name}' cannot take raw frames"):
            fuse(load(path), {name: RAW["image"]})


def test_a_wrong_mean_in_the_file_is_found_at_the_input(network: nn.Module, folder: Path, tmp_path: Path) -> None:
    x = HOW.apply(IMAGES[:4])
    expected = anchors(capture(network, (x,)), (x,))
    few = {"image": FRAMES["image"][:4]}
    assert first_fork(folder / "raw.f32.onnx", few, expected, 1e-3) is None
    wrong = load(folder / "raw.f32.onnx")
    tensor = constant(wrong, "image.offset")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name))
    save(wrong, tmp_path / "wrong.onnx")
    fork = first_fork(tmp_path / "wrong.onnx", few, expected, 1e-3)
    assert fork is not None
    assert (fork.tensor, fork.module) == ("image.normalized", "the input")


def test_noise_to_measure_with_has_the_type_and_the_range_of_each_input() -> None:
    inputs = [
        {"name": "frame", "dtype": "uint8", "shape": [-1, 32, 32, 3]},
        {"name": "tokens", "dtype": "int64", "shape": [-1, -1]},
        {"name": "x", "dtype": "float32", "shape": [-1, 5]},
    ]
    found = noise([TensorInfo(**i) for i in inputs], 4)
    assert {n: (x.dtype.name, x.shape) for n, x in found.items()} == {
        "frame": ("uint8", (4, 32, 32, 3)), "tokens": ("int64", (4, 1)), "x": ("float32", (4, 5)),
    }  # fmt: skip
    assert (found["frame"].min(), found["frame"].max()) == (0, 255)
    assert set(found["tokens"].ravel()) <= {0, 1}


def test_a_device_is_told_size_order_of_channels_and_how_to_resize(tmp_path: Path) -> None:
    for index in range(12):
        place = tmp_path / "train" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(index, 10, 12)).save(place / f"{index}.png")

    class Common:
        data = opened(tmp_path, folder={"path": "."}, size=[6, 8])

    told = preparation(Common, ["image"], raw=True)["image"]  # type: ignore[arg-type]
    assert (told["dtype"], told["layout"], told["shape"]) == ("uint8", "NHWC", [6, 8, 3])
    assert (told["channels"], told["pixels"], told["normalized_by"]) == ("RGB", [0, 255], "the file")
    assert told["background"] == 255
    resize = {"filter": "bilinear", "antialias": True, "fit": "stretch", "keep_aspect": False, "crop": None}
    assert told["resize"] == resize
    plain = preparation(Common, ["image"], raw=False)["image"]  # type: ignore[arg-type]
    assert (plain["dtype"], plain["layout"], plain["shape"]) == ("float32", "NCHW", [3, 6, 8])
    assert (plain["normalized_by"], len(plain["mean"]), plain["scale"]) == ("the caller", 3, 1 / 255)
