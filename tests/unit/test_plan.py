"""`edgekd plan`: eleven changes and what each of them runs again, with the reason and the time it took last."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekd.bench import machine
from edgekd.bench.targets.ssh import SshTarget
from edgekd.cli.main import run as edgekd
from edgekd.errors import UnavailableError
from edgekd.models import imports
from edgekd.pipeline import devices, keys
from edgekd.pipeline.plan import Planner
from edgekd.pipeline.runner import Outcome, RunOptions, _Run
from edgekd.pipeline.schema import load_pipeline
from edgekd.store import Store, StorePlace

FILE = """\
name: plan
seed: 3
data: {folder: {path: images}}
stages:
  - teacher: {model: "nets:make", weights: teacher.safetensors}
  - distill: {student: convnet, epochs: 5, task_weight: 0.1}
  - quantize: {}
  - export: {}
  - compile: {}
  - evaluate: {batch: 32}
targets:
  ort: {runtime: onnxruntime}
gates:
  - {measure: size, of: student, max: "1 MB"}
"""
STAGES = ["teacher", "distill", "quantize", "export", "compile", "evaluate"]


class Finished:
    """A pipeline of which every stage is in the store; nothing of it was truly run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.capture: pytest.CaptureFixture[str] | None = None

    def make(self) -> None:
        folder = self.folder
        for name in ("train/a", "train/b", "test/a", "test/b"):
            (folder / "images" / name).mkdir(parents=True)
            for index in range(8):
                self.draw(f"{name}/{index}", index)
        (folder / "nets.py").write_text("def make():\n    return 1\n")
        (folder / "teacher.safetensors").write_bytes(b"weights")
        (folder / "plan.yaml").write_text(FILE)
        store = Store(folder / "store")
        planner = Planner.open(load_pipeline(folder / "plan.yaml"), store)
        done: dict[str, Any] = {}
        for entry in planner.pipeline.stages:
            step = planner.step(entry, done, force=())
            assert step.key is not None
            with store.publish(step.key) as draft:
                draft.facts["stage"], draft.record["seconds"] = entry.name, 2.5
            done[entry.name] = artifact = store.get(step.key)
            assert artifact is not None
            planner.remember(step, artifact)

    def draw(self, name: str, seed: int) -> None:
        pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.folder / "images" / f"{name}.png")

    def edit(self, old: str, new: str, file: str = "plan.yaml") -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def call(self, *words: str) -> tuple[int, str]:
        assert self.capture is not None
        self.capture.readouterr()
        with pytest.raises(SystemExit) as end:
            edgekd(["plan", str(self.folder / "plan.yaml"), "--store", str(self.folder / "store"), *words])
        assert isinstance(end.value.code, int)
        return end.value.code, self.capture.readouterr().out

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.call("--json")[1])["stages"]
        return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """Made once, for that parses all sources; and a copy to begin each test with."""
    folder = tmp_path_factory.mktemp("plan")
    found = Finished(folder / "here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(imports, "_bases", [])
        found.make()
    shutil.copytree(found.folder, folder / "copy")
    return found, folder / "copy"


@pytest.fixture
def finished(
    made: tuple[Finished, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Finished:
    found, copy = made
    found.capture = capsys
    shutil.rmtree(found.folder)
    shutil.copytree(copy, found.folder)  # times and all
    for name in ("STORE", "STORE_MODE", "REMOTE_STORE", "OFFLINE", "LOG_FORMAT"):
        monkeypatch.delenv(f"EDGEKD_{name}", raising=False)
    return found


def test_without_a_change_everything_is_cached_and_its_time_is_shown(finished: Finished) -> None:
    assert [(row["state"], row["cache"], row["seconds"]) for row in finished.rows()] == [("cached", "local", 2.5)] * 6
    code, out = finished.call("--exit-code")
    assert code == 0
    assert out.splitlines()[0] == "teacher    cached     unchanged [2.5 s last time]"


def newer(name: str) -> str | None:
    return "99.1" if name == "torchao" else REAL(name)


REAL = keys.package_version
# What was changed: the first stage that runs again and why, or None. What depends on it waits.
CHANGES: dict[str, tuple[Callable[[Finished], object], str | None, str]] = {
    "a parameter": (lambda f: f.edit("epochs: 5", "epochs: 6"), "distill", "changed: settings.epochs 5 -> 6"),
    "a file of weights": (
        lambda f: (f.folder / "teacher.safetensors").write_bytes(b"other"), "teacher",
        "changed: weights 9a129038d9a0.. -> d9298a10d1b0..",
    ),
    "one image": (lambda f: f.draw("train/b/3", 99), "teacher", "changed: data {}.. -> {}.. (in train/b)"),
    "one image to test on": (lambda f: f.draw("test/b/3", 99), "evaluate", "changed: data {}.. -> {}.. (in test/b)"),
    "the version of a package": (lambda f: None, "quantize", "changed: packages.torchao {} -> 99.1"),
    "own source": (
        lambda f: f.edit("return 1", "return 2", "nets.py"), "teacher",
        "changed: networks.teacher {}.. -> {}.. (in nets.py)",
    ),
    "the seed": (lambda f: f.edit("seed: 3", "seed: 4"), "teacher", "seed 3 -> 4"),
    "a target": (
        lambda f: f.edit("runtime: onnxruntime", "runtime: onnxruntime, precision: [f32]"), "compile",
        'changed: targets.ort.precision ["f32", "int8"] -> ["f32"]',
    ),
    "a budget": (lambda f: f.edit("1 MB", "2 MB"), None, ""),
    "a comment": (lambda f: f.edit("seed: 3", "# why three?\nseed: 3  # ask"), None, ""),
    "the order of keys": (
        lambda f: f.edit("epochs: 5, task_weight: 0.1", "task_weight: 0.1, epochs: 5"), None, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_runs_what_depends_on_it_and_says_why(
    change: str, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, first, why = CHANGES[change]
    make(finished)
    if change == "the version of a package":
        monkeypatch.setattr(keys, "package_version", newer)
    rows = finished.rows()
    again = STAGES[STAGES.index(first) :] if first else []
    assert [row["name"] for row in rows if row["state"] == "would run"] == again
    if first is None:
        assert {row["why"] for row in rows} == {"unchanged"}
        return
    said = next(row for row in rows if row["name"] == first)
    parts = why.split("{}")
    place = 0
    for part in parts:
        assert part in said["why"][place:], said["why"]
        place = said["why"].index(part, place) + len(part)
    assert said["seconds"] == 2.5
    assert all(row["why"].startswith("waits for ") for row in rows if row["name"] in again[1:])
    assert finished.call("--exit-code")[0] == 1


def test_a_damaged_artefact_is_the_reason_to_run_again(finished: Finished) -> None:
    key = finished.rows()[1]["key"]
    meta = Store(finished.folder / "store").object(key) / "meta.json"
    meta.write_text(meta.read_text().replace("distill", "destill"))
    row = finished.rows()[1]
    assert (row["state"], row["why"]) == ("would run", "its artefact was damaged: meta.json was changed")
    row = finished.rows()[1]  # a plan removes nothing: the run after it says the same
    assert (row["state"], row["why"]) == ("would run", "its artefact was damaged: meta.json was changed")
    assert Store(finished.folder / "store").get(key) is None
    assert finished.rows()[1]["why"] == "its artefact is gone from the store"


def test_planning_on_a_store_that_is_only_read_leaves_it_as_it_is(finished: Finished) -> None:
    store = finished.folder / "store"
    before = {path: path.stat().st_mtime_ns for path in sorted(store.rglob("*"))}
    code, out = finished.call("--store-mode", "ro", "--exit-code")
    assert code == 0
    assert out.count("unchanged") == 6
    finished.edit("epochs: 5", "epochs: 6")
    assert "changed: settings.epochs 5 -> 6" in finished.call("--store-mode", "ro")[1]
    assert {path: path.stat().st_mtime_ns for path in sorted(store.rglob("*"))} == before


def test_planning_looks_at_a_remote_store_and_takes_nothing_from_it(finished: Finished) -> None:
    from edgekd.store.remote import RemoteStore

    url = f"file://{finished.folder}/remote"
    for artifact in Store(finished.folder / "store").all():
        RemoteStore(url).push(artifact)
    (finished.folder / "cold").mkdir()
    shutil.copy(finished.folder / "store" / "sources.json", finished.folder / "cold")  # parsing them takes seconds
    cold = ["--store", str(finished.folder / "cold"), "--remote-store", url]
    assert finished.call(*cold)[1].splitlines()[0] == "teacher    cached     unchanged (remote) [2.5 s last time]"
    assert not (finished.folder / "cold" / "objects").exists()
    fresh = finished.call(*cold, "--offline")[1].splitlines()
    assert fresh[0] == "the first run of this pipeline: all of its 6 stages would run"
    assert fresh[-1] == "evaluate   would run"
    assert "never ran before" not in "".join(fresh)


def test_a_missing_engine_or_device_ends_a_plan_as_it_ends_the_run(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(self: object) -> str:
        raise UnavailableError("ONNX Runtime is not installed", hint="pip install onnxruntime")

    monkeypatch.setattr("edgekd.runtimes.onnxruntime.OnnxRuntime.version", missing)
    assert finished.call()[0] == 0  # all is in the store: nothing is asked of the engine
    finished.edit("epochs: 5", "epochs: 6")
    code, out = finished.call("--exit-code")
    assert code == 3
    assert out.splitlines()[-1] == "`edgekd run` would end with 3 before the first stage that would run:"
    code, out = finished.call("--json")
    refused = json.loads(out)["refused"]
    assert (code, refused["exit_code"], refused["hint"]) == (3, 3, "pip install onnxruntime")
    assert refused["message"].endswith("plan.yaml:12:9: ONNX Runtime is not installed")


def test_a_device_that_is_not_here_ends_a_plan(finished: Finished) -> None:
    finished.edit("runtime: onnxruntime", "runtime: onnxruntime, device: NoSuch")
    assert finished.call()[0] == 3


def test_a_device_that_answers_a_plan_on_a_store_that_is_only_read_leaves_nothing_behind(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def probe(self: SshTarget, runtimes: Sequence[str]) -> dict[str, Any]:
        asked.append(str(self.address))
        about = {"machine": machine.fingerprint(), "numpy": "2.4", "executable": "python3", "python": "3.11.2"}
        return {**about, "engines": dict.fromkeys(runtimes, "1.30"), "missing": []}

    monkeypatch.setenv("EDGEKD_TARGETS", str(tmp_path / "targets.json"))
    monkeypatch.setattr(SshTarget, "probe", probe)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    devices.forget()
    finished.edit("runtime: onnxruntime", "runtime: onnxruntime, host: ssh://pi")
    assert finished.call("--store-mode", "ro")[0] == 0
    devices.forget()
    assert asked
    assert list(tmp_path.iterdir()) == []


def test_a_remote_store_that_is_added_later_gets_what_it_lacks_of_a_run(finished: Finished, tmp_path: Path) -> None:
    pipeline = load_pipeline(finished.folder / "plan.yaml")
    said: list[str] = []
    log: Any = SimpleNamespace(info=said.append, warning=said.append)
    place = StorePlace(finished.folder / "store", remote=f"file://{tmp_path}/remote")
    for expected in ([f"{name}: brought to the remote store, which lacked it" for name in STAGES], []):
        options = RunOptions(tmp_path / "out", place)
        run = _Run(pipeline, options, options.open_store(log.warning), log, Outcome())
        run.planner = Planner.open(pipeline, run.store)
        said.clear()
        run._stages()
        assert [line for line in said if not line.endswith(": cached")] == expected
    cold = StorePlace(tmp_path / "cold", remote=f"file://{tmp_path}/remote").open(tmp_path)
    steps = Planner.open(pipeline, cold).all()
    assert [step.artifact and step.artifact.found for step in steps] == ["remote"] * len(STAGES)
