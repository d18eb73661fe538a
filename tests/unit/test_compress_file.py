"""The pipeline file that `edgekd compress` writes: valid, by rule, and what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekd.cli.main import run as edgekd
from edgekd.config import parse_tree
from edgekd.errors import ConfigError
from edgekd.pipeline import keys
from edgekd.pipeline.compress import Network, Wish, _flow, check_text, epochs_for, pipeline_text, targets_of
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


def test_a_drop_that_was_asked_for_binds_the_student_too(tmp_path: Path) -> None:
    gates = written(tmp_path, student=Network(NET), max_drop="2 pt").settings.gates
    named = [(gate.of, gate.against, gate.target, gate.max, gate.otherwise) for gate in gates]
    own = ("quantized", "student", "onnxruntime", "2 pt", "float")
    assert named == [own, ("student", "teacher", "onnxruntime", "2 pt", "fail")]
    assert len(written(tmp_path, student=Network(NET)).settings.gates) == 1
    assert len(written(tmp_path, max_drop="2 pt").settings.gates) == 1


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


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        edgekd(["compress", *words])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with few images, a network and weights, all of it the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images/a").mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"images/a/{index}.png")
    (tmp_path / "nets.py").write_text("from torch import nn\n\ndef build(width=2):\n    return nn.Linear(width, 1)\n")
    (tmp_path / "w.safetensors").write_bytes(b"cut")
    return tmp_path


GIVEN = ("--data", "images", "--target", "onnxruntime", "--out", "out")
REFUSED = {
    "a module": (
        ["--model", "netz:build"],
        "--model netz:build: there is no module 'netz' in {here} or on the import path",
        "did you mean 'nets'?",
    ),
    "an argument": (
        ["--model", "nets:build", "--args", "widht=3"],
        "--args: nets:build takes no argument 'widht'",
        "did you mean 'width'?; known are: width",
    ),
    "weights": (
        ["--model", "nets:build", "--weights", "w.safetensors"],
        "--weights: w.safetensors: is cut short or damaged",
        "copy or save it again",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_the_option_and_no_line_of_a_file_that_nobody_wrote(
    case: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "sources_of", lambda kind, store: {})  # parsing all of our own takes seconds
    words, said, hint = REFUSED[case]
    good = {"pipeline.yaml": "of a good run", "manifest.json": "{}", "report.json": "{}"}
    (here / "out").mkdir()
    for name, text in good.items():
        (here / "out" / name).write_text(text)
    for more in ([], ["--dry-run"], ["--store-mode", "ro"]):
        assert call(*words, *GIVEN, *more) == 2
        out, err = capsys.readouterr()
        assert (out, err.startswith(f"error: {said.format(here=here)}\nhelp: {hint}")) == ("", True)
        assert "pipeline.yaml:" not in err
        assert {path.name: path.read_text() for path in (here / "out").iterdir()} == good


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-drop", "much"], "--max-drop: 'much' is no limit for metric_drop"),
        (["--name", "a/b"], "--name: 'a/b' cannot name a folder"),
        (["--to", "nix"], "--to nix: this file has no such stage"),
    ],
)
def test_an_option_that_makes_no_pipeline_leaves_nothing_behind(
    words: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--model", "nets:build", *GIVEN, *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}\nhelp: ")
    assert not (here / "out").exists()


def test_what_is_guessed_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "sources_of", lambda kind, store: {})
    frames = ["--model", "resnet8", "--args", "num_classes=2", *GIVEN, "--data", "images/a", "--dry-run"]
    said = "warning: normalised by this data's mean and std; give --normalize if the weights were trained otherwise\n"
    limit = "--max-drop: 3 pt of agreement, for there are no labels (with labels 1 pt)\n"
    assert call(*frames) == 0
    assert said + limit in capsys.readouterr().err
    assert call(*frames, "--normalize", "none", "--max-drop", "1 pt") == 0
    assert not {said, limit} & set(capsys.readouterr().err.splitlines(keepends=True))


def test_errors_of_stages_and_data_name_the_command_and_its_option(tmp_path: Path) -> None:
    asked = wish(tmp_path, student=Network(NET), targets=["openvino:GPU"])
    tree = check_text(asked, pipeline_text(asked)).tree
    named = {
        ("data", "folder"): "--data /data/images",
        ("stages", 0, "distill"): "compress",
        ("stages", 0, "distill", "student"): f"--student {NET}",
        ("stages", 3, "compile"): "compress",
        ("targets", "openvino_GPU", "device"): "--target openvino:GPU",
    }
    assert {place: tree.where(place) for place in named} == named


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


words = st.text(max_size=8).filter(lambda key: key != "<<")  # YAML's merge key, which no pipeline file may have
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(words, plain, max_size=3))
def test_any_arguments_come_back_as_they_were(value: dict[str, Any]) -> None:
    assert parse_tree(_flow(value), "x").value == value


def test_nothing_in_a_file_is_expanded_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    text = pipeline_text(wish(tmp_path, data=Found("digits", {}, "", True, 900)))
    (tmp_path / "p.yaml").write_text(text.replace("normalize:", 'licence: "${SECRET} $SECRET ~"\n  normalize:'))
    assert load_pipeline(tmp_path / "p.yaml").settings.data.licence == "${SECRET} $SECRET ~"
