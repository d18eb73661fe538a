"""One quantized network in every engine: executed precision, sign flavours, TensorRT's rules."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from zoo_files import Files, make, of_zoo

from edgekd.errors import CompileError, ParityError, UnavailableError, install_hint
from edgekd.export import parity
from edgekd.export.flavours import tensorrt_violations, to_uint8
from edgekd.export.half import to_half
from edgekd.export.onnx_file import load, save, write_onnx
from edgekd.export.settings import ExportSettings
from edgekd.export.stays import Misfits
from edgekd.models.names import ZOO
from edgekd.quantize.post_training import calibrated
from edgekd.quantize.quantizer import convert
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes.nvidia import has_gpu
from edgekd.runtimes.protocol import Layer, infer_batched
from edgekd.runtimes.registry import runtime
from edgekd.stages.compile import Order, count_precisions, refuse_for_tensorrt, source_of
from edgekd.stages.settings import TargetSettings

pytestmark = pytest.mark.slow
RTX = "the extra edgekd[tensorrt-rtx] is not installed"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make("resnet8", tmp_path_factory.mktemp("resnet8"), QuantizationSettings())


def convolutions(layers: tuple[Layer, ...]) -> dict[str, int]:
    return count_precisions(layer for layer in layers if "conv" in layer.kind.lower())


@pytest.mark.parametrize("name", ZOO)
def test_every_network_of_the_zoo_runs_its_convolutions_in_8_bits_and_builds_for_tensorrt(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = of_zoo(name, tmp_path_factory)
    expected = sum(node.op_type == "Conv" for node in load(files.path("int8")).graph.node)
    for flavour in ("int8", "uint8", "int8_f16"):
        onnx.checker.check_model(str(files.path(flavour)), full_check=True)
    for flavour in ("int8", "int8_f16"):
        assert tensorrt_violations(load(files.path(flavour))) == []
    builds_in_rtx(files.path("int8_f16"), tmp_path / "rtx")
    for engine, flavour in (("openvino", "int8"), ("openvino", "uint8"), ("onnxruntime", "uint8")):
        folder = tmp_path / f"{engine}.{flavour}"
        folder.mkdir()
        built = runtime(engine).compile(files.path(flavour), folder, device="CPU", threads=1, options={})
        assert convolutions(built.layers) == {"int8": expected}, (engine, flavour)


def builds_in_rtx(path: Path, folder: Path) -> None:
    """Three architectures in one engine, without a GPU; where RTX is not installed there is nothing to see."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return
    folder.mkdir()
    options = {"compute_capabilities": ["8.6", "8.9", "12.0"], "max_batch": 8, "opt_batch": 1}
    built = runtime("tensorrt_rtx").compile(path, folder, device="GPU", threads=1, options=options)
    assert (folder / built.file).stat().st_size > path.stat().st_size  # code for three, and the weights
    assert json.loads((folder / "engine.json").read_text())["compute_capabilities"] == ["8.6", "8.9", "12.0"]


@pytest.mark.parametrize("size", [(1, 17, 23), (3, 33, 31)])
def test_odd_sizes_without_batch_norm_quantize_and_build(size: tuple[int, int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    channels = size[0]
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(channels, 7, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(7, 13, 5, padding=1, groups=1),
        torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(13, 5))  # fmt: skip
    x = torch.randn(8, *size)
    quantized = calibrated(layers.eval(), (x[:2],), [(x,)], QuantizationSettings())
    write_onnx(convert(quantized), {"image": x[:2]}, ("logits",), tmp_path / "int8.onnx", opset=20, metadata={})
    save(to_uint8(load(tmp_path / "int8.onnx"), quantized.half_steps()), tmp_path / "uint8.onnx")
    save(to_half(load(tmp_path / "int8.onnx"), "f16")[0], tmp_path / "int8_f16.onnx")
    assert tensorrt_violations(load(tmp_path / "int8_f16.onnx")) == []
    builds_in_rtx(tmp_path / "int8_f16.onnx", tmp_path / "rtx")
    for engine in ("openvino", "onnxruntime"):
        (tmp_path / engine).mkdir()
        built = runtime(engine).compile(tmp_path / "uint8.onnx", tmp_path / engine, device="CPU", threads=1, options={})
        assert convolutions(built.layers) == {"int8": 2}, engine


def test_linear_layers_of_a_transformer_run_in_8_bits_and_what_is_fragile_stays_float(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = of_zoo("vit_tiny", tmp_path_factory)
    graph = load(files.path("int8")).graph
    producers = {name: node for node in graph.node for name in node.output}
    kinds = {node.op_type: {getattr(producers.get(x), "op_type", "") for x in node.input} for node in graph.node}
    assert all("DequantizeLinear" not in kinds[kind] for kind in ("Softmax", "LayerNormalization", "Gelu", "Add"))
    for engine, kind in (("openvino", "fullyconnected"), ("onnxruntime", "matmulinteger")):
        folder = tmp_path / engine
        folder.mkdir()
        built = runtime(engine).compile(files.path("uint8"), folder, device="CPU", threads=1, options={})
        counts = count_precisions(layer for layer in built.layers if kind in layer.kind.lower())
        assert counts.get("int8", 0) >= 24, (engine, counts)  # four in each of six blocks
        session = runtime(engine).load(folder / built.file, device="CPU", threads=1)
        found = infer_batched(session, files.feeds, 16)["logits"]
        session.close()
        assert np.abs(found - files.quantized).max() < 0.05 * np.abs(files.quantized).max()


@pytest.mark.parametrize(
    ("flavour", "reference", "tolerance"),
    [
        ("f32", "expected", 1e-5),
        ("f16", "expected", 5e-3),
        ("int8", "in_int8", 0.02),
        ("uint8", "quantized", 0.02),
        ("int8_f16", "in_int8", 0.05),
    ],
)
def test_every_flavour_says_what_its_network_says(
    resnet: Files, flavour: str, reference: str, tolerance: float
) -> None:
    found = parity.run_reference(resnet.path(flavour), resnet.feeds)
    expected = {"logits": getattr(resnet, reference)}
    assert parity.compare(found, expected, {"logits": "classification"}).relative_error < tolerance


@pytest.mark.parametrize(("flavour", "exact"), [("f32", True), ("int8", False)])
def test_a_wrong_scale_or_weight_in_one_layer_breaks_parity(
    resnet: Files, flavour: str, exact: bool, tmp_path: Path
) -> None:
    """Every other channel of one layer is spoiled: by a hundredth in the float file, by a wrong scale in the other."""
    expected = {"logits": resnet.expected if exact else resnet.in_int8}
    tasks = {"logits": "classification"}
    settings = ExportSettings()
    good = parity.compare(parity.run_reference(resnet.path(flavour), resnet.feeds), expected, tasks)
    parity.require("good", good, exact=exact, settings=settings)
    model = load(resnet.path(flavour))
    constants = {t.name: t for t in model.graph.initializer}
    nodes = [
        n
        for n in model.graph.node
        if n.op_type == ("Conv" if exact else "DequantizeLinear") and n.input[1] in constants
    ]
    weighted = [n for n in nodes if exact or n.input[0] in constants]
    tensor = constants[weighted[-1].input[1]]
    values = numpy_helper.to_array(tensor).copy()
    values[::2] *= np.float32(1.01 if exact else 1.5)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save(model, tmp_path / "bad.onnx")
    bad = parity.compare(parity.run_reference(tmp_path / "bad.onnx", resnet.feeds), expected, tasks)
    with pytest.raises(ParityError, match="bad differs from"):
        parity.require("bad", bad, exact=exact, settings=settings)


@pytest.mark.parametrize("bits", [2, 4])
def test_fewer_bits_are_simulated_exactly_in_both_signs(bits: int, tmp_path: Path) -> None:
    files = make("convnet", tmp_path, QuantizationSettings(weights=bits, activations=bits), [])
    for flavour, said in (("int8", files.in_int8), ("uint8", files.quantized)):
        found = parity.compare(
            parity.run_reference(files.path(flavour), files.feeds),
            {"logits": said},
            {"logits": "classification"},
        )
        parity.require(flavour, found, exact=False, settings=ExportSettings())
        assert found.noise < 0.3
    assert tensorrt_violations(load(files.path("int8"))) == []


def scales(path: Path) -> Counter[float]:
    model = load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found: Counter[float] = Counter()
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found.update(np.atleast_1d(constants[node.input[1]]).tolist())
    return found


def test_the_uint8_rewrite_shifts_what_may_be_negative_and_halves_the_steps_of_the_rest(resnet: Files) -> None:
    kept = scales(resnet.path("uint8")) & scales(resnet.path("int8"))
    finer, coarser = (scales(resnet.path(sign)) - kept for sign in ("uint8", "int8"))
    assert finer
    assert Counter({2 * scale: count for scale, count in finer.items()}) == coarser
    model = load(resnet.path("uint8"))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            assert zero.dtype == np.uint8
            if producers.get(node.input[0]) == "Relu":
                assert zero == 0
            if node.input[0] == "image":
                assert zero == 128


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_engines_take_any_batch_and_agree_with_the_reference(resnet: Files, engine: str, tmp_path: Path) -> None:
    adapter = runtime(engine)
    built = adapter.compile(resnet.path("f32"), tmp_path, device="CPU", threads=1, options={})
    assert [i.as_dict() for i in built.inputs] == [{"name": "image", "dtype": "float32", "shape": [-1, 3, 32, 32]}]
    assert convolutions(built.layers) == {"f32": 9}
    session = adapter.load(tmp_path / built.file, device="CPU", threads=1)
    for batch in (1, 5, 16):
        found = infer_batched(session, resnet.feeds, batch)["logits"]
        assert np.abs(found - resnet.expected).max() < 1e-4 * np.abs(resnet.expected).max()
    session.close()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_file_that_is_no_graph_is_a_compile_error_of_one_line(engine: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"this is no graph")
    (tmp_path / "out").mkdir()
    with pytest.raises(CompileError, match=r"refused broken\.onnx on CPU") as caught:
        runtime(engine).compile(broken, tmp_path / "out", device="CPU", threads=1, options={})
    assert "\n" not in caught.value.message


def test_a_device_that_is_not_here_is_named_with_those_that_are() -> None:
    with pytest.raises(UnavailableError, match=r"no device NPU here \(it has CPU"):
        runtime("openvino").check("NPU", run=True)
    with pytest.raises(UnavailableError, match="no provider for CUDA here"):
        runtime("onnxruntime").check("CUDA", run=True)


def test_our_own_check_refuses_the_uint8_flavour_for_tensorrt(resnet: Files) -> None:
    refuse_for_tensorrt(resnet.path("int8"))
    refuse_for_tensorrt(resnet.path("int8_f16"))
    with pytest.raises(CompileError, match=r"uint8\.onnx is not for TensorRT: .*UINT8"):
        refuse_for_tensorrt(resnet.path("uint8"))


def test_without_tensorrt_the_error_is_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx")):
        with pytest.raises(UnavailableError) as caught:
            runtime(name).version()
        assert caught.value.hint == install_hint(extra, extra)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("precision", ["f32", "f16", "bf16", "int8"])
def test_tensorrt_rtx_builds_for_two_architectures_without_a_gpu(resnet: Files, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=RTX)
    engine = runtime("tensorrt_rtx")
    options = {"compute_capabilities": ["8.6", "8.9"], "max_batch": 16}
    built = engine.compile(resnet.path(engine.flavour(precision)), tmp_path, device="GPU", threads=1, options=options)
    assert (tmp_path / built.file).stat().st_size > 10_000
    assert [o.name for o in built.outputs] == ["logits"]
    if not has_gpu():
        with pytest.raises(UnavailableError, match="run on an NVIDIA GPU, and none is here"):
            engine.load(tmp_path / built.file, device="GPU", threads=1)


@pytest.mark.parametrize("residual", ["both", "skip"])
def test_tensorrts_8_bits_are_made_of_the_int8_file_with_the_skips_as_asked(
    resnet: Files, residual: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra edgekd[tensorrt-rtx] is not installed")
    settings = TargetSettings(runtime="tensorrt_rtx", residual=residual, compute_capabilities=("8.6",))
    facts = {"model": "quantized", "flavour": "int8", "misfits": {"tensors": {}, "nodes": {}}}
    export: Any = SimpleNamespace(facts={"files": {"int8.onnx": facts}}, path=lambda name: resnet.folder / name)
    order = Order("gpu", settings, "quantized", "int8")
    made = source_of(order, "int8_f16", export, tmp_path)
    source = made.path
    assert made.kept == []
    graph = load(source).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    read = [{makers[name] for name in node.input} for node in graph.node if node.op_type == "Add"]
    assert read == [{"DequantizeLinear"} if residual == "both" else {"Conv", "DequantizeLinear"}] * 3
    found = parity.run_reference(source, resnet.feeds)
    assert parity.compare(found, {"logits": resnet.in_int8}, {"logits": "classification"}).relative_error < 0.05
    options = {"compute_capabilities": ["8.6"], "max_batch": 4}
    built = runtime("tensorrt_rtx").compile(source, tmp_path, device="GPU", threads=1, options=options)
    assert (tmp_path / built.file).stat().st_size > 10_000


def test_tensorrt_rtx_takes_a_layer_that_stays_float_amid_8_bits(resnet: Files, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra edgekd[tensorrt-rtx] is not installed")
    model = load(resnet.path("int8"))
    second = [node for node in model.graph.node if node.op_type == "Conv"][1]
    half, kept = to_half(model, "f16", Misfits({}, {second.name: "sums up to 1e5 inside"}))
    assert [one.node for one in kept] == [second.name]
    save(half, tmp_path / "mixed.onnx")
    refuse_for_tensorrt(tmp_path / "mixed.onnx")
    options = {"compute_capabilities": ["8.6"], "max_batch": 4}
    built = runtime("tensorrt_rtx").compile(tmp_path / "mixed.onnx", tmp_path, device="GPU", threads=1, options=options)
    assert (tmp_path / built.file).stat().st_size > 10_000


def test_a_bf16_build_rounds_and_knows_it_when_it_is_loaded_again(resnet: Files, tmp_path: Path) -> None:
    engine = runtime("openvino")
    try:
        engine.check("CPU", run=True, precisions=("bf16",))
    except UnavailableError as error:
        pytest.skip(error.message)
    off = {}
    for precision in ("f32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        options = {"precision": precision}
        built = engine.compile(resnet.path(engine.flavour(precision)), folder, device="CPU", threads=1, options=options)
        assert convolutions(built.layers) == {precision: 9}
        session = engine.load(folder / built.file, device="CPU", threads=1)
        found = infer_batched(session, resnet.feeds, 16)["logits"]
        session.close()
        off[precision] = float(np.abs(found - resnet.expected).max() / np.abs(resnet.expected).max())
    assert off["f32"] < 1e-5 < off["bf16"] < 0.05


def test_onnx_runtime_says_that_a_float16_graph_runs_in_float32_on_a_cpu(resnet: Files, tmp_path: Path) -> None:
    engine = runtime("onnxruntime")
    built = engine.compile(resnet.path("f16"), tmp_path, device="CPU", threads=1, options={"precision": "f16"})
    assert convolutions(built.layers) == {"f32": 9}
    assert [(i.dtype, o.dtype) for i, o in zip(built.inputs, built.outputs, strict=True)] == [("float32", "float32")]


def test_tensorrt_rtx_says_which_architectures_it_knows(resnet: Files, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=RTX)
    with pytest.raises(UnavailableError, match=r"does not build for compute capability 9\.0") as caught:
        runtime("tensorrt_rtx").compile(
            resnet.path("f32"), tmp_path, device="GPU", threads=1, options={"compute_capabilities": ["9.0"]}
        )
    assert "8.9" in str(caught.value.hint)


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(resnet: Files, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=RTX)
    (tmp_path / "engine.json").write_text('{"version": "0.1"}')
    (tmp_path / "engine.plan").write_bytes(b"")
    with pytest.raises(UnavailableError, match=r"built by tensorrt_rtx 0\.1, here is"):
        runtime("tensorrt_rtx").load(tmp_path / "engine.plan", device="GPU", threads=1)
