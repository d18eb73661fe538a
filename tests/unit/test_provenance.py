"""What a run says of itself can be held against it: manifest.json, `verify`, and the files that `bundle` packs."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import EdgekdError
from edgekd.files import sha256_bytes, sha256_file
from edgekd.pipeline.bundle import bundle
from edgekd.pipeline.deliver import draw_report
from edgekd.pipeline.manifest import manifest_text
from edgekd.pipeline.runner import Outcome
from edgekd.pipeline.schema import Pipeline, load_pipeline
from edgekd.pipeline.verify import verify_folder

FILE = """\
name: p
data: {folder: {path: images}}
stages:
  - teacher: {model: convnet, weights: w.safetensors, epochs: 1}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of a run of the pipeline file in it, which reached no stage."""
    folder = tmp_path / "runs" / "shop"
    folder.mkdir(parents=True)
    (folder / "pipeline.yaml").write_text(FILE)
    drawn(load_pipeline(folder / "pipeline.yaml"), folder)
    return folder


def drawn(pipeline: Pipeline, folder: Path, outcome: Outcome | None = None) -> dict[str, Any]:
    draw_report(pipeline, folder, outcome or Outcome(), time.time())
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def signed_anew(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest that was changed by somebody who knows how its own digest is made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(manifest_text(manifest))


def test_a_pipeline_file_in_the_folder_of_its_run_is_verified_with_it(run: Path) -> None:
    (run / "pipeline.previous.yaml").write_text("name: before")
    (run / "pipeline.previous.1.yaml").write_text("name: before that")
    assert verify_folder(run).problems == []
    (run / "pipeline.yaml").write_text(FILE + "# more")
    assert verify_folder(run).problems == ["pipeline.yaml was changed"]


def test_a_pipeline_file_elsewhere_is_no_file_of_the_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(FILE)
    (tmp_path / "out").mkdir()
    assert "p.yaml" not in drawn(load_pipeline(tmp_path / "p.yaml"), tmp_path / "out")["documents"]
    assert verify_folder(tmp_path / "out").problems == []


def test_the_manifest_has_the_pipeline_file_and_the_weights_as_they_were_used(run: Path) -> None:
    pipeline = load_pipeline(run / "pipeline.yaml")
    (run / "pipeline.yaml").write_text(FILE.replace("epochs: 1", "epochs: 2"))
    (run / "w.safetensors").write_bytes(b"other weights than those that ran")
    used = sha256_bytes(b"weights")
    manifest = drawn(pipeline, run, Outcome(made_of={"teacher": {"weights": used}}))
    assert manifest["pipeline"]["sha256"] == sha256_bytes(FILE.encode())
    assert manifest["weights"] == {"w.safetensors": used}
    assert "pipeline.yaml was changed" in verify_folder(run).problems


def test_a_pipeline_file_with_line_ends_of_windows_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_bytes(FILE.replace("\n", "\r\n").encode())
    assert load_pipeline(file).tree.sha256 == sha256_file(file)


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/../../out.txt"])
def test_verify_does_not_follow_names_out_of_the_folder(name: str, run: Path) -> None:
    (run / "a").mkdir()
    (run.parent / "out.txt").write_text("private")
    facts = {"sha256": sha256_file(run / name), "bytes": (run / name).stat().st_size}
    signed_anew(run, lambda manifest: manifest["documents"].update({name: facts}))
    assert verify_folder(run).problems == [f"manifest.json names {name!r}, which is not in this folder"]


BUILD = "artifacts/builds/ov.int8"


@pytest.fixture
def built(run: Path) -> Path:
    """The run with a build, of files that no engine looks at."""
    folder = run / BUILD
    folder.mkdir(parents=True)
    card = {"runtime": "openvino", "device": "CPU", "file": "model.xml", "inputs": {}, "outputs": {}, "classes": []}
    files = {"model.xml": "x", "model.bin": "b", "model.json": json.dumps(card | {"labels": {}}), "layers.json": "[]"}
    for name, text in files.items():
        (folder / name).write_text(text)
    report = json.loads((run / "report.json").read_text())
    build = {
        "target": "ov", "runtime": "openvino", "device": "CPU", "precision": "int8", "model": "student", "chosen": True,
        "path": f"{BUILD}/model.xml", "sha256": sha256_bytes(b"x"),
    }  # fmt: skip
    (run / "report.json").write_text(json.dumps(report | {"builds": [build]}))
    listed = {f"{BUILD}/{name}": {"sha256": sha256_bytes(text.encode())} for name, text in files.items()}
    signed_anew(run, lambda manifest: manifest["files"].update(listed))
    return run


def test_an_archive_lies_beside_the_run_and_holds_what_its_manifest_lists(built: Path) -> None:
    (built / BUILD / "private.txt").symlink_to("/etc/hostname")
    (built / BUILD / "more").mkdir()
    archive, manifest = bundle(built, None, None, None)
    assert archive == built.parent / "shop-ov.tar.gz"
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert names == {"model.xml", "model.bin", "model.json", "LICENSE", "manifest.json"}
    assert manifest["files"].keys() == names - {"manifest.json"}


def test_an_archive_of_the_current_folder_lies_beside_it(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built)
    assert bundle(Path(), None, None, None)[0] == built.parent / "shop-ov.tar.gz"


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a link": ("model.bin", link, "model.bin: is no plain file"),
    "a folder": ("model.bin", folder_instead, "model.bin: is no plain file"),
    "a missing file": ("model.bin", Path.unlink, "model.bin: is no plain file"),
    "a changed file": ("model.bin", lambda path: path.write_text("c"), "model.bin: is not what"),
    "a changed card": ("model.json", lambda path: path.write_text("{}"), "model.json: is not what"),
    "a changed main file": ("model.xml", lambda path: path.write_text("y"), "model.xml: is not what"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_build_that_is_not_as_the_run_left_it_is_not_packed(damage: str, built: Path) -> None:
    name, make, words = DAMAGE[damage]
    make(built / BUILD / name)
    with pytest.raises(EdgekdError) as error:
        bundle(built, None, None, None)
    assert (error.value.exit_code, words in error.value.message) == (4, True)
    assert not list(built.parent.glob("*.tar.gz"))


def test_a_build_that_is_not_in_the_manifest_is_not_packed(built: Path) -> None:
    signed_anew(built, lambda manifest: manifest["files"].clear())
    with pytest.raises(EdgekdError, match=r"model\.xml: is not in manifest\.json"):
        bundle(built, None, None, None)


def test_a_run_without_a_manifest_is_not_packed(built: Path) -> None:
    (built / "manifest.json").unlink()
    with pytest.raises(EdgekdError, match="no manifest") as error:
        bundle(built, None, None, None)
    assert error.value.exit_code == 2
