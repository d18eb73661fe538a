"""The pipeline file that `edgekd compress` writes: valid, by rule, and what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.config import parse_tree
from edgekd.errors import ConfigError
from edgekd.pipeline.compress import Network, Wish, _flow, epochs_for, pipeline_text, targets_of
from edgekd.pipeline.found_data import Found
from edgekd.pipeline.schema import Pipeline, load_pipeline
from edgekd.runtimes import saturation

NET = "edgekd.models.zoo.convnet:convnet"
FOUND = Found("folder", {"path": "/data/images"}, "900 train", True, 900, 10, (32, 32), 3, (32, 32))


def wish(out: Path, **more: Any) -> Wish:
    given = {"model": Network(NET), "student": None, "data": FOUND, "targets": ["onnxruntime"], "out": out, **more}
    return Wish(**given)


def written(out: Path, **more: Any) -> Pipeline:
    (out / "p.yaml").write_text(pipeline_text(wish(out, **more)))
    return load_pipeline(out / "p.yaml")


def options(pipeline: Pipeline, stage: str) -> Any:
    return next(entry.settings for entry in pipeline.stages if entry.name == stage)


def test_a_network_as_it_is_is_calibrated_built_scored_and_measured(tmp_path: Path) -> None:
    pipeline = written(tmp_path, model=Network(NET, {"width": 8, "depth": 3}, Path("w.pt")))
    assert [s.name for s in pipeline.stages] == ["model", "quantize", "export", "compile", "evaluate", "bench"]
    model, quantize = options(pipeline, "model"), options(pipeline, "quantize")
    assert (model.model, model.args) == (NET, {"width": 8, "depth": 3})
    assert (tmp_path / model.weights).resolve() == Path("w.pt").resolve()
    assert (quantize.calibration, quantize.passes(), quantize.weights) == (256, 0, 8)
    assert pipeline.settings.data.size == (32, 32)
    assert (tmp_path / pipeline.settings.python_path[0]).resolve() == Path.cwd()
    gate = pipeline.settings.gates[0]
    assert (gate.of, gate.against, gate.max, gate.otherwise) == ("quantized", "student", "1 pt", "float")


def test_a_student_is_distilled_for_as_long_as_the_data_asks(tmp_path: Path) -> None:
    pipeline = written(tmp_path, student=Network(NET, {"width": 4}))
    distill = options(pipeline, "distill")
    assert distill.epochs == epochs_for(900) == 200
    assert [item.name for item in distill.knowledge] == ["dist"]
    assert options(pipeline, "quantize").self_distillation
    assert pipeline.settings.train.batch == 32
    assert pipeline.settings.data.augment is not None
    assert pipeline.settings.data.augment.crop == 4
    assert options(written(tmp_path, student=Network(NET), epochs=3), "distill").epochs == 3
    assert (epochs_for(50_000), epochs_for(10_000_000)) == (60, 20)


@pytest.mark.parametrize(
    ("task", "found", "knowledge"),
    [
        ("classification", {"labelled": False, "classes": None}, "kd"),
        ("classification", {"classes": 2}, "kd"),
        ("regression", {"classes": None}, "mse_logits"),
    ],
)
def test_knowledge_follows_what_the_data_and_the_pair_allow(
    task: str, found: dict[str, Any], knowledge: str, tmp_path: Path
) -> None:
    data = Found(**{**vars(FOUND), **found})
    distill = options(written(tmp_path, student=Network(NET), task=task, data=data), "distill")
    assert [item.name for item in distill.knowledge] == [knowledge]


def test_without_labels_the_budget_is_one_on_agreement(tmp_path: Path) -> None:
    data = Found(**{**vars(FOUND), "labelled": False, "classes": None, "train": 185})
    pipeline = written(tmp_path, data=data)
    assert pipeline.settings.gates[0].max == "3 pt"
    assert options(pipeline, "quantize").calibration == 185


def test_targets_have_names_devices_hosts_and_their_precisions(tmp_path: Path) -> None:
    words = ["openvino:GPU", "onnxruntime@ssh://pi@board.local", "tensorrt"]
    pipeline = written(tmp_path, targets=words)
    found = pipeline.settings.targets
    assert list(found) == ["openvino_GPU", "onnxruntime_ssh_pi_board_local", "tensorrt"]
    assert (found["openvino_GPU"].device, found["tensorrt"].precision) == ("GPU", ("f16", "int8"))
    assert found["onnxruntime_ssh_pi_board_local"].host == "ssh://pi@board.local"
    with pytest.raises(ConfigError, match="given twice"):
        targets_of(["openvino", "openvino"])


def test_all_weights_have_seven_bits_where_eight_overflow(tmp_path: Path) -> None:
    assert options(written(tmp_path, saturates=True), "quantize").overflow_fix == "all"


@pytest.mark.parametrize(
    ("flags", "weak"), [("sse avx2", True), ("avx2 avx_vnni", False), ("avx512f avx512_vnni", False), ("", False)]
)
def test_a_processor_without_vnni_saturates(
    flags: str, weak: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n" if flags else "processor : 0\n")
    monkeypatch.setattr(saturation, "open", lambda path, **more: (tmp_path / "cpuinfo").open(), raising=False)
    monkeypatch.setattr(saturation.platform, "machine", lambda: "x86_64")
    assert saturation.saturates() is weak
    monkeypatch.setattr(saturation.platform, "machine", lambda: "aarch64")
    assert saturation.saturates() is False


def test_an_onnx_teacher_stands_in_the_file_from_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    out.mkdir(parents=True)
    pipeline = written(out, model=Network(str(tmp_path / "net.onnx")), student=Network(NET))
    assert options(pipeline, "model").model == "../../net.onnx"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=8), plain, max_size=3))
def test_any_arguments_come_back_as_they_were(value: dict[str, Any]) -> None:
    assert parse_tree(_flow(value), "x").value == value


def test_nothing_in_a_file_is_expanded_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    text = pipeline_text(wish(tmp_path, data=Found("digits", {}, "", True, 900)))
    (tmp_path / "p.yaml").write_text(text.replace("normalize:", 'licence: "${SECRET} $SECRET ~"\n  normalize:'))
    assert load_pipeline(tmp_path / "p.yaml").settings.data.licence == "${SECRET} $SECRET ~"
