"""Graphs in float16 and bfloat16: typed throughout, right where plain rounding is not, and saying what stays float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional
from zoo_files import IN_FLOAT, Files, of_zoo

from edgekd.errors import ExportError
from edgekd.export.flavours import quantize_skips_only, tensorrt_violations
from edgekd.export.half import _raise_opset, to_half
from edgekd.export.misfits import find_misfits
from edgekd.export.onnx_file import load, save
from edgekd.export.parity import run_reference
from edgekd.export.stays import Misfits

Array = NDArray[Any]


def graph(nodes: list[Any], constants: dict[str, Any], shape: list[Any], opset: int = 20) -> onnx.ModelProto:
    """x -> y, both float32."""
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], name=f"{kind}_{output}", **attributes)


def halved(model: onnx.ModelProto, kind: str, x: Array, folder: Path) -> tuple[onnx.ModelProto, dict[str, str], Array]:
    """The graph in half precision by what was found on x, what stayed float, and its answer."""
    save(model, folder / "f32.onnx")
    misfits = find_misfits(folder / "f32.onnx", {"x": x})
    half, kept = to_half(load(folder / "f32.onnx"), kind, misfits)
    save(half, folder / f"{kind}.onnx")
    return half, {one.node: one.why for one in kept}, evaluated(half, {"x": x})


def evaluated(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    """By ONNX's own evaluator: ONNX Runtime on a CPU has no bfloat16, and computes float16 in float32."""
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0], dtype=np.float32)


def off(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in inferred.initializer}


@pytest.fixture(scope="module", params=IN_FLOAT)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, dict[str, Array]]:
    """A network in f32 and int8, and what to feed it."""
    files = of_zoo(request.param, tmp_path_factory)
    return files, {name: values[:12] for name, values in files.feeds.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("origin", "kind"), [("f32", "f16"), ("f32", "bf16"), ("int8", "f16"), ("int8", "bf16")])
def test_the_zoo_is_typed_in_half_precision_and_keeps_its_borders(
    network: tuple[Files, dict[str, Array]], origin: str, kind: str
) -> None:
    files, feeds = network
    before = load(files.path(origin))
    half, kept = to_half(before, kind, find_misfits(files.path(origin), feeds))
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    typed = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[kind]
    assert [types[v.name] for v in (*half.graph.input, *half.graph.output)] == [TensorProto.FLOAT] * 2
    layers = [n for n in half.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")]
    floats = {one.node for one in kept}
    assert all((types[n.output[0]] == typed) != (n.name in floats) for n in layers)
    if origin == "f32":
        assert not floats & {n.name for n in layers}
    if kind == "f16":
        # Calibration may leave channels with scales that float16 does not hold, as in MobileNetV2.
        assert all("too small for float16" in one.why or one.why.startswith("reads ") for one in kept)
        assert len(kept) <= len(layers) // 2
    if kind == "f16" and not kept:
        assert sum(n.op_type == "Cast" for n in half.graph.node) == 2  # at the borders alone
    assert tensorrt_violations(half) == []
    names = {n.name for n in half.graph.node}
    assert len(names) == len(half.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize(("origin", "limit"), [("f32", 3e-3), ("int8", 0.08)])
def test_float16_answers_are_within_its_noise(
    network: tuple[Files, dict[str, Array]], origin: str, limit: float
) -> None:
    files, feeds = network
    half, _ = to_half(load(files.path(origin)), "f16")
    expected = run_reference(files.path(origin), feeds)["logits"]
    assert off(run_reference(half.SerializeToString(), feeds)["logits"], expected) < limit


@pytest.mark.slow
def test_bfloat16_answers_are_within_its_noise(network: tuple[Files, dict[str, Array]]) -> None:
    files, feeds = network
    few = {name: values[:2] for name, values in feeds.items()}
    half, _ = to_half(load(files.path("f32")), "bf16")
    assert off(evaluated(half, few), run_reference(files.path("f32"), few)["logits"]) < 0.05


@pytest.mark.slow
def test_skips_alone_in_8_bits_keep_their_scales_and_stay_near(network: tuple[Files, dict[str, Array]]) -> None:
    files, feeds = network
    model = load(files.path("int8"))
    skips = quantize_skips_only(model)

    def pairs(of: onnx.ModelProto) -> dict[str, float]:
        constants = {t.name: numpy_helper.to_array(t) for t in of.graph.initializer}
        return {n.output[0]: float(constants[n.input[1]]) for n in of.graph.node if n.op_type == "QuantizeLinear"}

    def straight(of: onnx.ModelProto) -> list[int]:
        makers = {name: n.op_type for n in of.graph.node for name in n.output}
        return [sum(makers.get(i) == "Conv" for i in n.input) for n in of.graph.node if n.op_type == "Add"]

    blocks = {"resnet8": 3, "mobilenetv2": 10, "wrn_16_2": 6}.get(files.folder.name, 0)
    assert pairs(skips).items() <= pairs(model).items()
    assert len(pairs(model)) - len(pairs(skips)) == blocks
    assert sum(straight(skips)) - sum(straight(model)) == blocks
    assert max(straight(skips), default=0) <= 1  # never both inputs of one addition
    expected = run_reference(files.path("int8"), feeds)["logits"]
    assert off(run_reference(skips.SerializeToString(), feeds)["logits"], expected) < 0.08


def test_a_planted_overflow_stays_float_and_the_rest_goes_to_float16(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = {name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("a", "b", "c")}
    w["a"] *= 3e4
    w["b"] /= 3e4 * 4
    nodes = [node("MatMul", "x a", "h"), node("Relu", "h", "r"), node("MatMul", "r b", "s"), node("MatMul", "s c", "y")]
    model = graph(nodes, w, ["n", 4])
    x = rng.standard_normal((64, 4)).astype(np.float32)
    expected = run_reference(model.SerializeToString(), {"x": x})["y"]
    naive, _ = to_half(model, "f16")
    with np.errstate(all="ignore"):
        assert not np.isfinite(evaluated(naive, {"x": x})).all()
    half, kept, found = halved(model, "f16", x, tmp_path)
    assert off(found, expected) < 3e-3
    assert set(kept) == {"MatMul_h", "Relu_r", "MatMul_s"}
    assert kept["MatMul_h"].startswith("h reaches ") and kept["MatMul_h"].endswith("float16 ends at 65504")
    assert types_of(half)["y_f16"] == TensorProto.FLOAT16
    # bfloat16 has the range of float32: nothing stays.
    _, kept, found = halved(model, "bf16", x, tmp_path)
    assert not kept
    assert off(found, expected) < 0.05


def test_a_sum_that_overflows_inside_stays_float_though_what_goes_in_and_out_fits(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("ReduceMean", "r axes", "m", keepdims=1),
        node("LayerNormalization", "r scale", "l", axis=-1),
        node("Add", "m l", "y"),
    ]
    model = graph(nodes, {"axes": np.array([1]), "scale": np.ones(4096, np.float32)}, ["n", 4096])
    x = np.full((4, 4096), 30.0, np.float32) + np.random.default_rng(0).normal(size=(4, 4096)).astype(np.float32) * 9
    _, kept, found = halved(model, "f16", x, tmp_path)
    assert set(kept) == {"ReduceMean_m", "LayerNormalization_l"}
    assert kept["ReduceMean_m"] == "sums up to 1.2e+05 inside"
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 2e-3


def test_an_epsilon_that_vanishes_is_added_in_float(tmp_path: Path) -> None:
    """Half of the rows are constant: their variance is 0, and 0 / 0 is not a number."""
    nodes = [
        node("ReduceMean", "x axes", "m", keepdims=1),
        node("Sub", "x m", "d"),
        node("Mul", "d d", "s"),
        node("ReduceMean", "s axes", "v", keepdims=1),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "q"),
        node("Div", "d q", "y"),
    ]
    constants = {"axes": np.array([1]), "eps": np.float32(1e-9)}
    model = graph(nodes, constants, ["n", 8])
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    x[::2] = 1.0
    _, kept, found = halved(model, "f16", x, tmp_path)
    assert {"Add_e", "Sqrt_q"} <= set(kept)
    assert "its constant eps of 1e-09 is 0 in float16" in kept["Add_e"] or "1.0e-09, which is 0" in kept["Add_e"]
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 5e-3
    # Without such rows in the calibration data it is known by the constant alone.
    _, kept = to_half(model, "f16")
    assert {one.node for one in kept} == {"Add_e", "Sqrt_q"}


def test_a_weight_that_does_not_fit_is_named_and_its_layer_stays_float(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x big", "h"), node("Mul", "h small", "s"), node("Add", "s bias", "y")]
    constants = {
        "big": np.full((4, 4), 1e6, np.float32),
        "small": np.full(4, 1e-7, np.float32),
        "bias": np.full(4, 1e-9, np.float32),  # beside what it is added to it is nothing: no reason
    }
    x = np.full((2, 4), 1e-3, np.float32)
    _, kept, found = halved(graph(nodes, constants, ["n", 4]), "f16", x, tmp_path)
    assert set(kept) == {"MatMul_h", "Mul_s"}
    assert kept["MatMul_h"] == "its constant big reaches 1.0e+06: float16 ends at 65504"
    assert kept["Mul_s"] == "its constant small stays below 1.0e-07: float16 loses digits there"
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 2e-3


def quantized_layer(weight_scale: float, dead: bool = False, opset: int = 20) -> onnx.ModelProto:
    nodes = [
        node("QuantizeLinear", "x sx zero", "xq"),
        node("DequantizeLinear", "xq sx zero", "xd"),
        node("DequantizeLinear", "w sw zeros", "wd", axis=1),
        node("MatMul", "xd wd", "h"),
        node("Relu", "h", "r"),
        node("Add", "r xd", "y"),
    ]
    stored = np.random.default_rng(0).integers(-127, 128, (4, 4)).astype(np.int8)
    scales = np.full(4, 0.01, np.float32)
    scales[1] = weight_scale
    if dead:
        stored[:, 1] = 0
    constants = {"sx": np.float32(0.02), "zero": np.int8(0), "w": stored, "sw": scales, "zeros": np.zeros(4, np.int8)}
    return graph(nodes, constants, ["n", 4], opset)


def test_a_tiny_scale_keeps_its_layer_in_float_and_the_pairs_fused(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
    model = quantized_layer(1e-8)
    half, kept, found = halved(model, "f16", x, tmp_path)
    assert set(kept) == {"DequantizeLinear_wd", "MatMul_h"}
    assert kept["DequantizeLinear_wd"] == "its constant sw has a scale of 1.0e-08, too small for float16"
    assert kept["MatMul_h"] == "reads DequantizeLinear_wd, which is float"
    makers = {name: n for n in half.graph.node for name in n.output}
    layer = next(n for n in half.graph.node if n.name == "MatMul_h")
    assert [makers[name].op_type for name in layer.input] == ["DequantizeLinear"] * 2  # and no Cast between
    # What the layer reads in float32 the addition behind it reads in float16: two DequantizeLinear of one tensor.
    assert sum(n.op_type == "DequantizeLinear" and n.input[0] == "xq" for n in half.graph.node) == 2
    assert tensorrt_violations(half) == []
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 5e-3


def test_a_dead_channel_keeps_nothing_in_float(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
    half, kept, found = halved(quantized_layer(1e-12, dead=True), "f16", x, tmp_path)
    assert not kept
    scale = next(numpy_helper.to_array(t) for t in half.graph.initializer if t.name == "sw_f16")
    assert scale.min() >= 2**-14
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 5e-3


def test_sizes_are_counted_in_float_and_resize_keeps_its_float_inputs(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Shape", "r", "shape"),
        node("Cast", "shape", "f", to=TensorProto.FLOAT),
        node("Mul", "f two", "g"),
        node("Div", "g f", "ratio"),
        helper.make_node("Resize", ["r", "", "ratio"], ["u"], name="Resize_u", mode="nearest"),
        node("ReduceSum", "g", "total", keepdims=0),
        node("Div", "u total", "y"),
    ]
    model = graph(nodes, {"two": np.array([1, 1, 2, 2], np.float32)}, ["n", 1, 3, 701])
    x = np.random.default_rng(0).uniform(1, 2, (2, 1, 3, 701)).astype(np.float32)
    half, kept, found = halved(model, "f16", x, tmp_path)
    types = types_of(half)
    assert types["ratio"] == TensorProto.FLOAT and types["u_f16"] == TensorProto.FLOAT16
    assert {kept[name] for name in ("Cast_f", "Mul_g", "Div_ratio")} == {"computes with sizes"}
    assert found.shape == (2, 1, 6, 1402)
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 2e-3


def test_graphs_inside_a_node_and_foreign_operations_stay_float(tmp_path: Path) -> None:
    def branch(kind: str) -> Any:
        out = helper.make_tensor_value_info(f"o_{kind}", TensorProto.FLOAT, None)
        return helper.make_graph([node(kind, "r", f"o_{kind}")], kind, [], [out])

    choice = helper.make_node("If", ["yes"], ["i"], name="If_i", then_branch=branch("Exp"), else_branch=branch("Neg"))
    nodes = [node("Relu", "x", "r"), choice, node("Add", "i r", "y")]
    model = graph(nodes, {"yes": np.array(True)}, ["n", 4])
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    _, kept, found = halved(model, "f16", x, tmp_path)
    assert kept == {"If_i": "holds a graph of its own"}
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 2e-3


def test_what_was_already_typed_and_constants_as_nodes_come_through(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.float32(0.5))
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value=value),
        node("Mul", "x c", "m"),
        node("Cast", "m", "i", to=TensorProto.INT32),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "f c", "y"),
    ]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    half, kept, found = halved(graph(nodes, {}, ["n", 4]), "f16", x, tmp_path)
    assert not kept
    assert types_of(half)["f_f16"] == TensorProto.FLOAT16
    np.testing.assert_array_equal(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"])


def test_bfloat16_raises_the_opset_and_says_where_that_cannot_be() -> None:
    x = [node("Relu", "x", "y")]
    assert to_half(graph(x, {}, ["n", 4]), "bf16")[0].opset_import[0].version == 22
    assert to_half(graph(x, {}, ["n", 4]), "f16")[0].opset_import[0].version == 20
    nodes = [node("GroupNormalization", "x s b", "y", num_groups=2)]
    constants = {"s": np.ones(2, np.float32), "b": np.zeros(2, np.float32)}
    with pytest.raises(ExportError, match="GroupNormalization of opset 20 has no bfloat16 form") as caught:
        to_half(graph(nodes, constants, ["n", 4, 8]), "bf16")
    assert caught.value.hint == "set export.opset: 22"


def test_a_quantized_graph_of_opset_18_becomes_float16_too(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
    half, kept, found = halved(quantized_layer(0.01, opset=18), "f16", x, tmp_path)
    assert not kept
    assert half.opset_import[0].version == 19
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 5e-3
    # Without quantization there is no reason to leave the opset that was asked for.
    assert to_half(graph([node("Relu", "x", "y")], {}, ["n", 4], 18), "f16")[0].opset_import[0].version == 18


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest", None])
def test_a_grid_to_sample_at_is_made_and_read_in_float_in_the_words_of_its_opset(kind: str, mode: str | None) -> None:
    attributes = {} if mode is None else {"mode": mode}
    nodes = [
        node("Relu", "x", "r"),
        node("Slice", "x zero two last", "part"),
        node("Mul", "part factor", "moved"),
        node("Tanh", "moved", "grid"),
        node("GridSample", "r grid", "s", align_corners=1, **attributes),
        node("Mul", "s factor", "y"),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "last": np.array([3]), "factor": np.float32(0.7)}
    half, stay = to_half(graph(nodes, constants, ["n", 3, 9, 8], 18), kind)
    onnx.checker.check_model(half, full_check=True)
    types, kept = types_of(half), {one.node: one.why for one in stay}
    assert types["grid"] == TensorProto.FLOAT
    assert types[f"s_{kind}"] == {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[kind]
    assert {name: why for name, why in kept.items() if name != "Slice_part"} == dict.fromkeys(
        ["Mul_moved", "Tanh_grid"], "makes coordinates"
    )
    sampled = next(n for n in half.graph.node if n.op_type == "GridSample")
    words = {a.name: a.s.decode() for a in sampled.attribute}
    new = {"bilinear": "linear", "bicubic": "cubic"} if kind == "bf16" else {}
    assert words.get("mode") == new.get(str(mode), mode)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_samples_of_a_grid_that_a_convolution_makes_are_those_of_torch_in_every_opset(mode: str) -> None:
    """Of a map so wide that half a float16 step of its coordinates is an eighth of a pixel."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 3, 1024)).astype(np.float32), (0.3 * rng.standard_normal((2, 2, 1, 1)))
    w = w.astype(np.float32)
    nodes = [
        node("Conv", "x w", "c"),
        node("Tanh", "c", "t"),
        node("Transpose", "t", "grid", perm=[0, 2, 3, 1]),
        node("GridSample", "x grid", "s", mode=mode, align_corners=1),
        node("Relu", "s", "y"),
    ]
    grid = torch.tanh(functional.conv2d(torch.from_numpy(x), torch.from_numpy(w))).permute(0, 2, 3, 1)

    def sampled(grid: torch.Tensor) -> Array:
        found = functional.grid_sample(torch.from_numpy(x), grid, mode=mode, align_corners=True)
        return np.asarray(found.relu().numpy())

    right = sampled(grid)
    model = graph(nodes, {"w": w}, ["n", 2, 3, 1024], 18)
    half, _ = to_half(model, "f16")
    kept = off(run_reference(half.SerializeToString(), {"x": x})["y"], right)
    assert kept < 2e-3 < off(sampled(grid.half().float()), right)
    for opset in (18, 20, 22):
        _raise_opset(model, opset)
        assert off(run_reference(model.SerializeToString(), {"x": x})["y"], right) < 1e-3


def test_regions_are_read_in_float() -> None:
    nodes = [node("Relu", "x", "r"), node("RoiAlign", "r rois batch", "a"), node("Relu", "a", "y")]
    constants = {"rois": np.array([[0, 0, 1001, 1003]], np.float32), "batch": np.array([0])}
    for kind in ("f16", "bf16"):
        half, kept = to_half(graph(nodes, constants, ["n", 2, 8, 8], 22), kind)
        onnx.checker.check_model(half, full_check=True)
        assert [(one.node, one.why) for one in kept] == [("RoiAlign_a", "reads coordinates")]
        assert types_of(half)["rois"] == TensorProto.FLOAT


@pytest.mark.parametrize("axis", [None, 2])
def test_the_axis_of_a_dft_becomes_an_input(axis: int | None, tmp_path: Path) -> None:
    attributes = {} if axis is None else {"axis": axis}
    nodes = [node("DFT", "x", "d", **attributes), node("Relu", "d", "y")]
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 1)).astype(np.float32)
    model = graph(nodes, {}, ["n", 4, 6, 1], 18)
    _, kept, found = halved(model, "bf16", x, tmp_path)
    assert "DFT_d" in kept
    spectrum = np.fft.fft(x[..., 0], axis=axis or 1)
    expected = np.maximum(np.stack([spectrum.real, spectrum.imag], -1), 0)
    assert off(found, expected) < 0.05


def test_new_names_are_not_those_of_tensors_that_are_there(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "h"),
        node("Cast", "h", "h_f16", to=TensorProto.INT32),
        node("Cast", "h_f16", "whole", to=TensorProto.FLOAT),
        node("Sub", "h whole", "part_f16_"),
        node("Add", "part_f16_ w", "y"),
    ]
    x = np.random.default_rng(0).uniform(-4, 4, (4, 4)).astype(np.float32)
    half, kept, found = halved(graph(nodes, {"w": np.ones(4, np.float32)}, ["n", 4]), "f16", x, tmp_path)
    assert not kept
    names = [name for n in half.graph.node for name in n.output]
    assert len(set(names)) == len(names)
    assert off(found, run_reference(tmp_path / "f32.onnx", {"x": x})["y"]) < 2e-3


def test_what_overflows_float16_is_found_without_a_warning(tmp_path: Path) -> None:
    """Warnings are errors in tests."""
    model = graph([node("Div", "x huge", "d"), node("Div", "d x", "y")], {"huge": np.float32(1e9)}, ["n", 4])
    save(model, tmp_path / "f32.onnx")
    x = np.array([[1e6, 2e6, 1e38, 1.0]], np.float32)
    assert "x" in find_misfits(tmp_path / "f32.onnx", {"x": x}).tensors


def test_misfits_survive_the_way_through_a_stages_facts() -> None:
    found = Misfits({"h": "reaches 1e5"}, {"n": "sums up"})
    assert Misfits(**found.facts()) == found
