"""predict.py beside a build sees of an image what training saw, to the pixel, and is short enough to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgekd.export.predict as beside
from edgekd.data.readers.images import ImageDecoder, ImageRules
from edgekd.errors import ConfigError
from edgekd.export.card import answers, read_card

RULES = [
    ImageRules(3, (8, 8)),
    ImageRules(3, (7, 12), fit="crop", interpolation="bicubic"),
    ImageRules(3, (16, 16), fit="crop", crop_share=0.875),
    ImageRules(3, (9, 14), fit="pad"),
    ImageRules(3, (30, 24), fit="pad"),
    ImageRules(1, (8, 8), fit="pad", interpolation="nearest", background=0),
]


def saved(mode: str, folder: Path) -> Path:
    """A picture of 21x30 in a mode, turned by EXIF where the format has it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (21, 30, 4), dtype=np.uint8)
    ending = "jpg" if mode in ("RGB", "CMYK") else "pgm" if mode == "I" else "png"
    path = folder / f"{mode.replace(';', '')}.{ending}"
    if mode in ("I", "I;16"):
        Image.fromarray(rng.integers(0, 65536, (21, 30), dtype=np.uint16)).save(path)
        return path
    image = Image.fromarray(pixels, "RGBA").convert(mode if mode != "P" else "RGB")
    if mode == "P":
        image.quantize(16).save(path, transparency=3)
        return path
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


def how(rules: ImageRules, layout: str) -> dict[str, Any]:
    assert rules.size is not None
    sizes, count = list(rules.size), rules.channels
    resize = {
        "filter": rules.interpolation,
        "fit": rules.fit,
        "crop": rules.crop_share if rules.fit == "crop" else None,
    }
    return {
        "channels": "grey" if count == 1 else "RGB",
        "layout": layout,
        "shape": [*sizes, count] if layout == "NHWC" else [count, *sizes],
        "resize": resize,
        "background": rules.background,
        "normalized_by": "the file" if layout == "NHWC" else "the caller",
        "pixels": [0, 255],
        "scale": 1 / 255,
        "mean": [0.5] * count,
        "std": [0.25] * count,
    }


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "I;16", "I"])
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: f"{rules.fit}-{rules.interpolation}-{rules.channels}")
def test_an_image_is_prepared_as_training_prepared_it(mode: str, rules: ImageRules, tmp_path: Path) -> None:
    path = saved(mode, tmp_path)
    expected = ImageDecoder(rules).decode([(path, path)], 1)
    frames = beside.prepare(path, how(rules, "NHWC"))
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, expected.transpose(0, 2, 3, 1))
    x = beside.prepare(path, how(rules, "NCHW"))
    assert x.dtype == np.float32
    assert np.allclose(x, (expected / 255 - 0.5) / 0.25, atol=1e-5)


def test_the_script_is_short_and_needs_numpy_pillow_and_an_engine_alone() -> None:
    lines = Path(beside.__file__).read_text().splitlines()
    assert len(lines) < 60
    assert [line for line in lines if line.startswith(("import ", "from "))] == [
        "import json",
        "import sys",
        "from pathlib import Path",
        "import numpy as np",
        "from PIL import Image, ImageOps",
    ]


def test_answers_are_the_likeliest_classes_with_their_probabilities() -> None:
    logits = np.log(np.array([0.2, 0.7, 0.1]))
    assert [(name, round(share, 6)) for name, share in answers(logits, ["a", "b", "c"], 2)] == [("b", 0.7), ("a", 0.2)]
    assert answers(logits, None, 1)[0][0] == "1"


@pytest.mark.parametrize("file", ["../x", "/etc/hostname", "no.onnx", 3, ""])
def test_a_card_names_a_file_beside_it_or_is_refused(file: object, tmp_path: Path) -> None:
    card = {"runtime": "r", "device": "d", "file": file, "inputs": {}, "outputs": {}, "classes": [], "labels": {}}
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(ConfigError, match="names no file beside it"):
        read_card(tmp_path)


CARD = {"runtime": "r", "device": "d", "file": "m", "inputs": {}, "outputs": {}, "classes": [], "labels": {}}


@pytest.mark.parametrize(
    ("key", "value"),
    [("inputs", []), ("inputs", {"x": 1}), ("outputs", "y"), ("labels", [1]), ("classes", {}), ("runtime", ["r"])],
)
def test_a_card_whose_parts_are_of_another_kind_is_damaged(key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    (tmp_path / "model.json").write_text(json.dumps(CARD))
    assert read_card(tmp_path) == (tmp_path, CARD)
    (tmp_path / "model.json").write_text(json.dumps({**CARD, key: value}))
    with pytest.raises(ConfigError, match="is damaged"):
        read_card(tmp_path)


def test_the_folder_of_a_run_is_answered_with_its_builds(tmp_path: Path) -> None:
    for name in ("ort.int8", "ort.f32"):
        build = tmp_path / "artifacts/builds" / name
        build.mkdir(parents=True)
        (build / "model.json").write_text(json.dumps(CARD))
    with pytest.raises(ConfigError, match="no build of edgekd") as caught:
        read_card(tmp_path)
    builds = [f"{tmp_path}/artifacts/builds/ort.{precision}" for precision in ("f32", "int8")]
    assert caught.value.hint == f"that is a run; give one of its builds: {', '.join(builds)}"


@pytest.mark.parametrize("words", [["predict", "BUILD", "x.png"], ["evaluate", "BUILD", "--data", "x"]])
def test_a_build_of_an_unknown_runtime_is_refused(words: list[str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from edgekd.cli.main import app

    (tmp_path / "m").touch()
    image = {"x": {"pixels": "rgb", "channels": "rgb"}}
    (tmp_path / "model.json").write_text(json.dumps({**CARD, "runtime": "os:abort", "inputs": image}))
    asked = [str(tmp_path) if word == "BUILD" else word for word in words]
    found = CliRunner().invoke(app, asked).exception
    assert isinstance(found, ConfigError)
    assert found.message == "unknown runtime 'os:abort'"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a build of a tiny network of one image in each engine, images of two classes, and predict.py."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from edgekd.runtimes.registry import runtime

    folder = tmp_path_factory.mktemp("whole")
    weight = numpy_helper.from_array(np.arange(24, dtype=np.float32).reshape(12, 2), "w")
    nodes = [helper.make_node("Flatten", ["image"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    x, y = ("image", ["b", 3, 2, 2]), ("y", ["b", 2])
    ports = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in (x, y)]
    graph = helper.make_graph(nodes, "g", *ports, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "in.onnx")
    labels = {"labels": {"y": ["a", "b"]}, "classes": ["y"]}
    heads = {"y": {"target": "label", "task": "classification"}}
    taken = {"image": how(ImageRules(3, (2, 2)), "NCHW")}
    for name in ("onnxruntime", "openvino"):
        (folder / name).mkdir()
        build = runtime(name).compile(folder / "in.onnx", folder / name, device="CPU", threads=1, options={})
        device = "CPUExecutionProvider" if name == "onnxruntime" else "CPU"
        engine = {"runtime": name, "device": device, "file": build.file, "hint": "f32"}
        (folder / name / "model.json").write_text(json.dumps({**engine, **labels, "inputs": taken, "outputs": heads}))
    for label in "ab":
        (folder / "images" / label).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (2, 2), (index, 9, 9)).save(folder / f"images/{label}/{index}.png")
    return folder


@pytest.mark.parametrize(
    ("runtime", "file", "code", "said"),
    [
        ("onnxruntime", "model.onnx", 2, "not an ONNX file, or damaged"),
        ("openvino", "model.bin", 4, "openvino cannot load this build: Incorrect weights in bin file"),
        ("openvino", "model.xml", 4, "openvino cannot load this build: "),
    ],
)
def test_a_build_that_was_cut_short_is_one_line(
    runtime: str,
    file: str,
    code: int,
    said: str,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import runpy
    import shutil

    from edgekd.cli.main import run

    folder = Path(shutil.copytree(whole / runtime, tmp_path / "build"))
    shutil.copy(beside.__file__, folder)
    image = str(whole / "images/a/0.png")
    commands = [["predict", str(folder), image], ["evaluate", str(folder), "--data", str(whole / "images")]]

    def ended(words: list[str]) -> object:
        with pytest.raises(SystemExit) as end:
            run(words)
        return end.value.code

    assert [ended(words) for words in commands] == [0, 0]
    (folder / file).write_bytes((folder / file).read_bytes()[:-40])
    capsys.readouterr()
    for words in commands:
        assert ended(words) == code
        lines = capsys.readouterr().err.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["error", "help"]
        assert said in lines[0]
    monkeypatch.setattr("sys.argv", ["predict.py", image])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(folder / "predict.py"), run_name="__main__")
    assert str(end.value.code).startswith(f"error: {'model.onnx' if code == 2 else 'model.xml'}: ")
    assert len(str(end.value.code).splitlines()) == 1


def test_an_image_that_cannot_be_read_takes_the_others_answers_from_nobody(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import runpy
    import shutil

    from edgekd.cli.main import run

    folder = Path(shutil.copytree(whole / "onnxruntime", tmp_path / "build"))
    shutil.copy(beside.__file__, folder)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [str(path) for path in (whole / "images/a/0.png", broken, whole / "images/b/0.png")]
    for words in (images, [*images, "--json"]):
        with pytest.raises(SystemExit) as end:
            run(["predict", str(folder), *words])
        said = capsys.readouterr()
        assert end.value.code == 4
        assert said.err.splitlines()[0] == f"error: {broken}: the image cannot be decoded"
        assert [image for image in images if image in said.out] == [images[0], images[2]]
    monkeypatch.setattr("sys.argv", ["predict.py", *images])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(folder / "predict.py"), run_name="__main__")
    assert str(end.value.code).startswith(f"error: {broken}: ")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [images[0], images[2]]
    monkeypatch.setattr("sys.argv", ["predict.py", images[0]])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(folder / "predict.py"), run_name="__main__")
    assert not end.value.code
