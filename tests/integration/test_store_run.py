"""Runs and their store: two at once, a cold machine with a warm remote store, a fork that may not write, `verify`."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain import Result, Workshop
from forked import edgekd
from mistakes import Place

from edgekd.errors import ConfigError
from edgekd.pipeline.verify import verify_folder

pytestmark = pytest.mark.slow
PIPELINES = Path(__file__).parents[2] / "pipelines"
FEW = [
    "data.limit={train: 256}",
    "teacher.epochs=1",
    "distill.epochs=1",
    "quantize.epochs=1",
    "export.min_agreement=0.5",
]
SMALL = [*(word for value in FEW for word in ("--set", value)), "--set", "export.max_noise=10", "--to", "compile"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("store"))
    shutil.copy(PIPELINES / "digits.yaml", made.file)
    return made


@pytest.fixture(scope="module")
def remote(workshop: Workshop) -> list[str]:
    return ["--remote-store", f"file://{workshop.folder}/remote"]


@pytest.fixture(scope="module")
def first(workshop: Workshop, remote: list[str]) -> Result:
    result = workshop.run(*SMALL, *remote)
    assert result.code == 0, result.err
    assert {stage["cache"] for stage in result.report["stages"] if stage["state"] == "ran"} == {"miss"}
    return result


def elsewhere(workshop: Workshop, name: str, *words: str) -> tuple[int, str, dict[str, Any]]:
    """The same pipeline file on another machine: a store and an output folder of its own."""
    out = workshop.folder / name
    done = edgekd(workshop.words(*SMALL, "--out", str(out), "--store", str(out / "store"), *words))
    return done.returncode, done.stderr, json.loads((out / "report.json").read_text())


def test_a_cold_machine_with_a_warm_remote_store_trains_nothing(
    workshop: Workshop, first: Result, remote: list[str]
) -> None:
    code, said, report = elsewhere(workshop, "cold", *remote)
    assert code == 0, said
    done = [stage for stage in report["stages"] if stage["state"] != "skipped"]
    assert [(stage["name"], stage["state"], stage["cache"]) for stage in done] == [
        (name, "cached", "remote") for name in ("teacher", "distill", "quantize", "export", "compile")
    ]
    assert "samples/s" not in said
    for path in (workshop.out / "artifacts").rglob("*"):
        if path.is_file():
            there = workshop.folder / "cold" / path.relative_to(workshop.out)
            assert there.read_bytes() == path.read_bytes()
    code, said, report = elsewhere(workshop, "cold", *remote)
    assert {stage["cache"] for stage in report["stages"] if stage["state"] == "cached"} == {"local"}


def test_a_fork_reads_the_store_and_leaves_it_as_it_is(workshop: Workshop, first: Result, remote: list[str]) -> None:
    places = [workshop.folder / "store", workshop.folder / "remote"]
    before = {path: path.stat().st_mtime_ns for place in places for path in sorted(place.rglob("*"))}
    out = workshop.folder / "fork"
    words = ["--out", str(out), "--store-mode", "ro", "--set", "distill.epochs=2", "--to", "distill"]
    for states in (["cached", "ran"], ["cached"] * 2):
        done = edgekd(workshop.words(*SMALL, *remote, *words))
        assert done.returncode == 0, done.stderr
        report = json.loads((out / "report.json").read_text())
        assert [stage["state"] for stage in report["stages"]][:2] == states
    assert {path: path.stat().st_mtime_ns for place in places for path in sorted(place.rglob("*"))} == before
    assert verify_folder(out).problems == []


def test_of_two_runs_on_one_store_at_once_each_stage_is_run_once(tmp_path: Path) -> None:
    made = Workshop(tmp_path)
    shutil.copy(PIPELINES / "digits.yaml", made.file)
    words = [*SMALL, "--to", "distill"]
    runs = [
        subprocess.Popen(made.command(*words, "--out", str(tmp_path / name)), stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    said = [run.communicate(timeout=600)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("a", "b")]
    for first, second in zip(*(report["stages"][:2] for report in reports), strict=True):
        assert sorted([first["state"], second["state"]]) == ["cached", "ran"], first["name"]
        assert first["key"] == second["key"]
    for name in ("a", "b"):
        assert verify_folder(tmp_path / name).problems == []


def damaged_weights(folder: Path) -> None:
    path = folder / "artifacts" / "student.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def edited(folder: Path, old: str, new: str) -> None:
    path = folder / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def signed_anew(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A manifest that was changed by somebody who knows how its own digest is made."""
    from edgekd.pipeline.manifest import manifest_text

    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(manifest_text(manifest))


def linked(folder: Path) -> None:
    path = folder / "artifacts" / "student.f32.onnx"
    path.rename(folder.parent / "elsewhere.onnx")
    path.symlink_to(folder.parent / "elsewhere.onnx")


def other_epochs(manifest: dict[str, Any]) -> None:
    manifest["stages"][1]["made_of"]["settings"]["epochs"] = 100


def other_teacher(manifest: dict[str, Any]) -> None:
    manifest["stages"][0]["digest"] = "0" * 64


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed bit": (damaged_weights, "artifacts/student.safetensors was changed"),
    "a longer file": (
        lambda f: (f / "report.md").write_text((f / "report.md").read_text() + "x"),
        "report.md was changed",
    ),
    "a missing file": (lambda f: (f / "artifacts" / "student.f32.onnx").unlink(), "student.f32.onnx is missing"),
    "a link": (linked, "artifacts/student.f32.onnx is a link"),
    "one file more": (lambda f: (f / "artifacts" / "x.onnx").write_text(""), "x.onnx is not in manifest.json"),
    "white space in the manifest": (lambda f: edited(f, ": 2,", ":  2,"), "manifest.json was changed"),
    "another seed in the manifest": (lambda f: edited(f, '"seed": 0', '"seed": 1'), "manifest.json was changed"),
    "a manifest that is none": (lambda f: (f / "manifest.json").write_text("[]"), "no manifest any more"),
    "another setting": (lambda f: signed_anew(f, other_epochs), "distill: its key does not follow from what"),
    "another teacher": (lambda f: signed_anew(f, other_teacher), "distill: was made from another teacher than"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_refuses_whatever_is_not_as_it_was_written(
    damage: str, workshop: Workshop, first: Result, place: Place
) -> None:
    folder = place.folder / "run"
    shutil.copytree(workshop.out, folder)
    said = place.call("verify", "run")
    assert (said.code, said.err) == (0, "")
    assert "5 stages are as they were written" in said.out
    make, words = DAMAGE[damage]
    make(folder)
    said = place.call("verify", "run", "--json")
    found = json.loads(said.out)
    assert (said.code, found["ok"]) == (4, False)
    assert words in found["problems"][0]


def test_a_folder_without_a_manifest_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as error:
        verify_folder(tmp_path)
    assert "killed" in str(error.value.hint)


def test_the_manifest_follows_a_build_to_the_teacher_and_its_data(workshop: Workshop, first: Result) -> None:
    from edgekd.pipeline.manifest import lineage

    manifest = json.loads((workshop.out / "manifest.json").read_text())
    chain = lineage("artifacts/builds/ov.int8/model.xml", manifest["files"])
    assert chain == [
        f"artifacts/{name}"
        for name in (
            "builds/ov.int8/model.xml", "student.uint8.onnx", "quantized.safetensors", "teacher.safetensors",
            "student.safetensors",
        )
    ]  # fmt: skip
    learnt = {stage["made_of"]["data"] for stage in manifest["stages"] if "data" in stage["made_of"]}
    assert len(learnt) == 1
    assert learnt != {manifest["data"]["fingerprint"]}  # which is of the test split, too
    assert manifest["seed"] == 0
    card = (workshop.out / "model_card.md").read_text()
    for words in (
        "# digits",
        "## Licence",
        "`artifacts/student.uint8.onnx`",
        "convnet",
        manifest["data"]["fingerprint"],
    ):
        assert words in card
