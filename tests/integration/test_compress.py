"""One's own network and data by one command, and what can be done with the builds that it leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import forked
import pytest
import torch
from chain import Result
from PIL import Image
from safetensors.torch import save_file

from edgekd.cli.main import run as edgekd

pytestmark = pytest.mark.slow
TARGET = ["--target", "onnxruntime", "--target", "openvino"]


def call(folder: Path, *words: str, code: int = 0) -> Result:
    """The command line in a process of its own, as a user has it."""
    done = forked.edgekd(words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return Result(done.returncode, done.stdout, done.stderr, {})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `edgekd new`, its network trained a little, and compressed up to `evaluate`."""
    folder = tmp_path_factory.mktemp("compress") / "shop"
    call(folder.parent, "new", "shop")
    call(folder, "run", "pipeline.yaml", "--to", "teacher", "--set", "teacher.epochs=6")
    network = ["--model", "network:build", "--args", "width=32"]
    weights = ["--weights", "runs/example/artifacts/teacher.safetensors"]
    call(folder, "compress", *network, *weights, "--data", "images", "--channels", "1", *TARGET, "--to", "evaluate")
    return folder


def test_the_file_that_it_wrote_gives_the_same_stages(shop: Path) -> None:
    plan = json.loads(call(shop, "plan", "runs/compress/pipeline.yaml", "--json").out)
    states = {row["name"]: row["state"] for row in plan["stages"]}
    assert states == {
        **dict.fromkeys(["model", "quantize", "export", "compile", "evaluate"], "cached"),
        "bench": "would run",
    }


def test_every_build_says_all_that_its_engine_does_not(shop: Path) -> None:
    artifacts = shop / "runs/compress/artifacts"
    folders = sorted((artifacts / "builds").iterdir())
    assert [folder.name for folder in folders] == [
        "onnxruntime.f32",
        "onnxruntime.int8",
        "openvino.f32",
        "openvino.int8",
    ]
    for folder in folders:
        card = json.loads((folder / "model.json").read_text())
        ((_, how),) = card["inputs"].items()
        assert (how["channels"], how["shape"], how["pixels"], len(how["mean"])) == ("grey", [1, 8, 8], [0, 255], 1)
        assert card["labels"] == {"output": list("0123456789")} or list(card["labels"].values()) == [list("0123456789")]
        script = (folder / "predict.py").read_text()
        assert len(script.splitlines()) < 60
        imported = {
            line.split()[1].split(".")[0]
            for line in script.splitlines()
            if line.strip().startswith(("import ", "from "))
        }
        assert imported <= {"json", "sys", "pathlib", "numpy", "PIL", "openvino", "onnxruntime"}
    assert "as they were written" in call(shop, "verify", "runs/compress").out
    manifest = json.loads((shop / "runs/compress/manifest.json").read_text())
    assert manifest["preprocessing"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_script_beside_a_build_and_the_command_say_the_same(engine: str, shop: Path) -> None:
    build = f"runs/compress/artifacts/builds/{engine}.int8"
    images = ["images/test/3/001.png", "images/test/8/002.png"]
    rows = json.loads(call(shop, "predict", build, *images, "--json").out)
    done = subprocess.run(
        [sys.executable, "-I", f"{build}/predict.py", *images], cwd=shop, capture_output=True, text=True, check=True
    )
    for line, row in zip(done.stdout.splitlines(), rows, strict=True):
        first = row["classes"][0]
        assert line.split()[2] == first["class"]
        assert float(line.split()[3]) == pytest.approx(first["probability"], abs=2e-3)


def test_a_build_is_scored_on_other_data_as_the_run_scored_it(shop: Path) -> None:
    report = json.loads((shop / "runs/compress/report.json").read_text())
    (build,) = (b for b in report["builds"] if (b["target"], b["precision"]) == ("onnxruntime", "int8"))
    found = json.loads(
        call(shop, "evaluate", str(Path("runs/compress") / build["path"]), "--data", "images", "--json").out
    )
    (scored,) = build["metrics"][:1]
    assert (found["value"], found["n"], found["split"]) == (scored["value"], scored["n"], "test")
    assert found["learned_from"] is None
    seen = call(shop, "evaluate", str(Path("runs/compress") / build["path"]), "--data", "images/train").out
    assert seen.splitlines()[1].startswith("note: the build was calibrated or trained on files of this data")
    assert found["ci95"] == pytest.approx(scored["ci95"])
    assert build["difference"]["n"] == scored["n"]


def test_classes_are_matched_by_name_where_the_data_has_fewer(shop: Path) -> None:
    some = shop / "some"
    for name in ("7", "9"):
        (some / name).mkdir(parents=True)
        for path in sorted((shop / "images/test" / name).iterdir())[:10]:
            (some / name / path.name).write_bytes(path.read_bytes())
    build = "runs/compress/artifacts/builds/onnxruntime.f32"
    found = json.loads(call(shop, "evaluate", build, "--data", "some", "--json").out)
    assert (found["n"], found["split"]) == (20, "train")
    assert found["value"] > 0.5
    (some / "7").rename(some / "cat")
    assert "knows no class 'cat'" in call(shop, "evaluate", build, "--data", "some", code=4).err
    (shop / "bare").mkdir()
    Image.new("L", (8, 8)).save(shop / "bare/1.png")
    assert "has no labels" in call(shop, "evaluate", build, "--data", "bare", code=2).err


def test_a_bundle_is_the_same_bytes_twice_and_runs_where_it_is_unpacked(shop: Path, tmp_path: Path) -> None:
    assert (
        "no build of openvino was chosen" in call(shop, "bundle", "runs/compress", "--target", "openvino", code=2).err
    )
    assert "several targets" in call(shop, "bundle", "runs/compress", code=2).err
    report = json.loads((shop / "runs/compress/report.json").read_text())
    run = tmp_path / "run"
    for build in report["builds"]:
        build["chosen"] = build["precision"] == "int8"
        folder = (shop / "runs/compress" / build["path"]).parent
        (run / build["path"]).parent.mkdir(parents=True)
        for path in folder.iterdir():
            ((run / build["path"]).parent / path.name).write_bytes(path.read_bytes())
    (run / "report.json").write_text(json.dumps(report))
    (run / "manifest.json").write_bytes((shop / "runs/compress/manifest.json").read_bytes())
    (tmp_path / "LICENCE").write_text("free\n")
    for name in ("a.tar.gz", "b.tar.gz"):
        call(tmp_path, "bundle", "run", "--target", "openvino", "-o", name, "--licence", "LICENCE")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        members = {member.name.partition("/")[2]: member for member in archive.getmembers()}
        archive.extractall(tmp_path / "device", filter="data")
    assert {
        "model.xml",
        "model.bin",
        "model.json",
        "predict.py",
        "labels.txt",
        "LICENSE",
        "manifest.json",
    } <= members.keys()
    assert "model.blob" not in members
    assert {(member.mode, member.mtime, member.isfile()) for member in members.values()} == {(0o644, 0, True)}
    (unpacked,) = (tmp_path / "device").iterdir()
    image = shop / "images/test/0/000.png"
    command = [sys.executable, "-I", str(unpacked / "predict.py"), str(image)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[2] == "0"
    manifest = json.loads((unpacked / "manifest.json").read_text())
    assert manifest["metrics"]
    changed = run / next(b["path"] for b in report["builds"] if b["target"] == "openvino" and b["chosen"])
    changed.write_bytes(changed.read_bytes() + b" ")
    assert (
        "is not what the run's manifest and report say"
        in call(tmp_path, "bundle", "run", "--target", "openvino", code=4).err
    )


def test_an_onnx_file_teaches_a_student_and_is_cached(shop: Path) -> None:
    student = ["--student", "network:build", "--student-args", "width=8", "--epochs", "2"]
    command = ["--model", "runs/compress/artifacts/student.f32.onnx", *student, "--data", "images", "--channels", "1"]
    said = call(shop, "compress", *command, *TARGET, "--to", "evaluate", "--out", "runs/taught")
    assert "training will take about" in said.err
    assert "outputs of the teacher are" in said.err
    report = json.loads((shop / "runs/taught/report.json").read_text())
    teacher = next(model for model in report["models"] if model["role"] == "teacher")
    assert (teacher["macs"], teacher["parameters"] > 10_000) == (None, True)
    assert {build["model"] for build in report["builds"]} == {"student", "quantized"}
    original = json.loads((shop / "runs/compress/report.json").read_text())["models"][0]
    assert teacher["metrics"][0]["value"] == original["metrics"][0]["value"]


def test_a_network_in_a_user_package_with_shared_material(shared: Path, tmp_path: Path) -> None:
    """The network of ../shared/own_model on few CIFAR-10 images: quantized, exported, built and scored."""
    import pyarrow.parquet as pq

    for split, count in (("train", 96), ("test", 64)):
        rows = pq.read_table(shared / f"data/cifar10/{split}.parquet").slice(0, count).to_pylist()
        for index, row in enumerate(rows):
            place = tmp_path / "images" / split / f"class{row['label']}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{index}.jpg").write_bytes(row["img"]["bytes"])
    (tmp_path / "shopnet.py").write_bytes((shared / "own_model/shopnet.py").read_bytes())
    network = ["--model", "shopnet:ShopNet", "--args", "width=32"]
    weights = ["--weights", str(shared / "own_model/shopnet_w32.safetensors")]
    normal = ["--normalize", "0.4914,0.4822,0.4465/0.2470,0.2435,0.2616"]
    target = ["--target", "onnxruntime"]
    call(tmp_path, "compress", *network, *weights, *normal, "--data", "images", *target, "--to", "evaluate")
    report = json.loads((tmp_path / "runs/compress/report.json").read_text())
    scores = {build["precision"]: build["metrics"][0]["value"] for build in report["builds"]}
    assert scores["f32"] > 0.75
    assert abs(scores["int8"] - scores["f32"]) < 0.1


def test_a_folder_of_frames_without_labels_is_compressed_by_agreement(shop: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for index, path in enumerate(sorted((shop / "images/train").rglob("*.png"))[::3]):
        (frames / f"{index:04}.png").write_bytes(path.read_bytes())
    state = shop / "runs/example/artifacts/teacher.safetensors"
    network = ["--model", "network:build", "--args", "width=32", "--args", "num_classes=10", "--weights", str(state)]
    (tmp_path / "network.py").write_bytes((shop / "network.py").read_bytes())
    call(
        tmp_path, "compress", *network, "--data", "frames", "--channels", "1", "--target", "onnxruntime",
        "--to", "evaluate",
    )  # fmt: skip
    report = json.loads((tmp_path / "runs/compress/report.json").read_text())
    assert {build["metrics"][0]["name"] for build in report["builds"]} == {"agreement"}
    assert report["builds"][0]["difference"] is None


def test_a_second_file_is_kept_when_the_first_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images/a").mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"images/a/{index}.png")
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    words = ["compress", "--model", "resnet8", "--data", "images", "--target", "openvino", "--dry-run", "--json"]
    for _ in range(2):
        with pytest.raises(SystemExit):
            edgekd(words)
        file = tmp_path / json.loads(capsys.readouterr().out)["pipeline"]
        assert list(file.parent.glob("*.yaml")) == [file]
    for edit in ("# mine\n", "# mine\n", "# mine, too\n"):
        file.write_text(file.read_text() + edit)
        with pytest.raises(SystemExit):
            edgekd([word for word in words if word != "--json"])
        assert "it is now runs/compress/pipeline.previous" in capsys.readouterr().err
    kept = {path.name: path.read_text() for path in file.parent.glob("*previous*")}
    assert kept.keys() == {"pipeline.previous.yaml", "pipeline.previous.1.yaml"}
    assert kept["pipeline.previous.yaml"].endswith("# mine\n")
