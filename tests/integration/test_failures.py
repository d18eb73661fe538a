"""What goes wrong while a run works: one line, one of help, the exit code, a report, and earlier stages stay cached."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mistakes import FILE, TEACHER, Place, Said, edited
from PIL import Image

from edgekd.errors import UnavailableError
from edgekd.files import lock
from edgekd.pipeline import runner


def _images(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for index in range(24):
            pixels = np.random.default_rng(index).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    for index in range(24):
        (folder / f"a/{index}.png").write_bytes(b"no image")


def _arrays(folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(120, 1, 8, 8)).astype(np.float32)
    y = np.arange(120) % 10
    for name, label in (("high", 12), ("low", -1)):
        np.savez(folder / f"{name}.npz", x=x, y=np.where(np.arange(120) == 5, label, y))


def _code(folder: Path) -> None:
    (folder / "needs.py").write_text("import nothere\n")
    (folder / "broken.py").write_text("def make(:\n")
    (folder / "raises.py").write_text("def make():\n    raise KeyError('x')\n")
    (folder / "leaves.py").write_text("raise SystemExit(0)\n")


def _weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"other": torch.zeros(3)}, str(folder / "other.safetensors"))
    (folder / "damaged.safetensors").write_bytes(b"not at all a file of tensors")
    (folder / "damaged.pt").write_bytes(b"not at all a file of tensors")


LR = "epochs: 3, lr: 1.0e+30"
# Found before the first stage (2) or while a stage works (4): the mistake, what makes its files, the lines.
AT_WORK: dict[str, tuple[list[tuple[str, str]], int, str, str]] = {
    "image that does not decode": (
        [("digits: {}", "folder: {path: images}"), ("  limit: {train: 64, validation: 32, test: 32}\n", "")],
        4, r"^p.yaml:3:3: .*images/a/[0-9]+.png: the image cannot be decoded", "remove it",
    ),
    "label above the classes": (
        [("digits: {}", "npz: {path: high.npz}\n  classes: 10")], 4, r"^p.yaml:3:3: .*label 12 of 'y'", "data.classes",
    ),
    "label above the network": (
        [("digits: {}", "npz: {path: high.npz}"), ("width: 4", "num_classes: 10, width: 4")],
        4, r"^p.yaml:3:3: .*label 12 is out of range .* 10 classes", "args",
    ),
    "label below zero": ([("digits: {}", "npz: {path: low.npz}")], 4, r"^p.yaml:3:3: .*label -1 of 'y'", "from 0"),
    "loss that is not a number": ([("epochs: 1", LR)], 4, r"^p.yaml:7:5: teacher: the loss .* not finite", "rate"),
    "weights that do not fit": (
        [("epochs: 1", "weights: other.safetensors")], 2, r"^p.yaml:7:59: .*other.safetensors does not fit", "model",
    ),
    "weights that are damaged": (
        [("epochs: 1", "weights: damaged.safetensors")], 2, r"^p.yaml:7:59: .*damaged.safetensors: is no file", "pt",
    ),
    "a pickle that is none": (
        [("epochs: 1", "weights: damaged.pt")], 2, r"^p.yaml:7:59: .*damaged.pt: is no file of weights", "safetensors",
    ),
    "factory that does not import": (
        [("convnet, args: {width: 4, depth: 3}", "needs:make")],
        2, r"^p.yaml:7:15: .*needs.py:1: ModuleNotFoundError", "install the package that has the module 'nothere'",
    ),
    "factory that is no Python": (
        [("convnet, args: {width: 4, depth: 3}", "broken:make")],
        2, r"^p.yaml:7:15: .*broken.py:1: not valid Python", "mend the file",
    ),
    "factory that raises": (
        [("convnet, args: {width: 4, depth: 3}", "raises:make")], 2, r"^p.yaml:7:15: .*raises.py:2: KeyError", "args",
    ),
    "factory that is not there": (
        [("convnet, args: {width: 4, depth: 3}", "raises:mak")], 2, r"^p.yaml:7:15: .*no 'mak'", "mean 'make'",
    ),
    "factory that ends the process": (
        [("convnet, args: {width: 4, depth: 3}", "leaves:make")],
        2, "^p.yaml:7:15: .*leaves.py:1: SystemExit", "to see all",
    ),
    "arguments that the factory does not take": (
        [("width: 4", "widht: 4")], 2, r"^p.yaml:7:31: convnet takes no argument 'widht'", "mean 'width'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AT_WORK)
def test_a_mistake_that_shows_at_work_is_explained(name: str, place: Place) -> None:
    for make in (_images, _arrays, _code, _weights):
        make(place.folder / "images" if make is _images else place.folder)
    pairs, code, error, hint = AT_WORK[name]
    said = place.run(edited(*pairs), "--to", "teacher")
    said.is_one_mistake(code, error, hint)
    report = place.report()
    assert (report["status"], report["exit_code"]) == ("failed", code)
    assert (report["error"]["message"], report["error"]["hint"]) == (said.errors[0], said.help[0])
    assert len(report["stages"]) == 5
    assert "ran" not in place.states().values()
    assert all((place.folder / "out" / name).is_file() for name in ("report.html", "report.md", "junit.xml"))


def test_a_stage_that_fails_leaves_the_earlier_ones_cached(place: Place) -> None:
    student = "  - distill: {student: convnet, args: {width: 4, depth: 3}, epochs: 3, lr: 1.0e+30}\n"
    text = edited((TEACHER, TEACHER + student))
    said = place.run(text, "--json")
    said.is_one_mistake(4, "^p.yaml:8:5: distill: the losses .* are not finite .*step", "lower the learning rate")
    assert json.loads(said.out)["error"]["stage"] == "distill"
    assert place.states() == dict.fromkeys(place.states(), "skipped") | {"teacher": "ran", "distill": "failed"}
    again = place.run(text.replace("1.0e+30", "0.01"), "--to", "distill")
    assert again.code == 0, again.err
    assert place.states()["teacher"] == "cached"
    assert place.states()["distill"] == "ran"


def test_a_knowledge_that_ends_the_process_is_a_failure_with_a_report(place: Place) -> None:
    (place.folder / "quits.py").write_text("def loss(student, teacher):\n    raise SystemExit(0)\n")
    student = '  - distill: {student: convnet, epochs: 1, knowledge: ["quits:loss"]}\n'
    said = place.run(edited((TEACHER, TEACHER + student)))
    said.is_one_mistake(4, "code of your own ended the process", "exit")
    assert place.report()["exit_code"] == 4


def test_a_full_disk_in_a_stage_is_a_line_and_the_earlier_stages_stay(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd import files

    real = files.write_atomic

    def full(path: Path, content: bytes | str) -> None:
        if path.name == "checkpoint.pt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("edgekd.train.checkpoint.write_atomic", full)
        said = place.run(FILE)
    said.is_one_mistake(4, "^.*/checkpoint.pt: no space left on the disk$", "^free some space")
    assert place.report()["error"]["stage"] == "teacher"
    assert place.run(None, "--to", "teacher").code == 0


def test_a_disk_too_full_for_the_report_fails_the_run_in_a_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/report.json")

    monkeypatch.setattr("edgekd.report.draw.write_atomic", full)
    said = place.run(FILE, "--to", "teacher", "--json")
    said.is_one_mistake(4, "^out/report.json: no space left on the disk$", "^free some space")
    report = json.loads(said.out)
    assert (report["status"], report["exit_code"], report["error"]["stage"]) == ("failed", 4, None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_store_on_a_disk_that_is_nearly_full_is_refused_before_training(place: Place, small_disk: Path) -> None:
    place.run(FILE, "--store", str(small_disk / "s")).is_one_mistake(4, "no space left on the disk", "^free some space")
    assert place.states()["teacher"] == "failed"


@pytest.mark.parametrize("left", [0, 6000, 30000], ids=["no report", "half a report", "half an artefact"])
def test_an_output_folder_on_a_full_disk_is_a_line(left: int, place: Place, small_disk: Path) -> None:
    (small_disk / "log").mkdir()
    free = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - left))
    said = place.run(FILE, "--out", str(small_disk / "log"), "--to", "quantize")
    said.is_one_mistake(4, "no space left on the disk$", "^free some space")


def test_another_run_in_the_output_folder_means_try_again(place: Place) -> None:
    (place.folder / "out").mkdir()
    with lock(place.folder / "out/.lock", timeout_s=0, holder_hint=""):
        said = place.run(FILE)
    said.is_one_mistake(75, "^out/.lock is held by another process", "wait for the other run")


def hear_ctrl_c() -> None:
    """A job in the background (`make test &`) inherits a SIGINT that is ignored; this process must hear it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (15, 143, "terminated")])
def test_a_signal_keeps_the_checkpoint_and_draws_the_report(number: int, code: int, word: str, place: Place) -> None:
    place.write(edited(("epochs: 1", "epochs: 100000")))
    command = [sys.executable, "-m", "edgekd", "run", "p.yaml", "--out", "out", "--store", "store"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "preexec_fn": hear_ctrl_c}
    with subprocess.Popen(command, cwd=place.folder, **pipes) as run:
        assert run.stderr is not None
        epochs = 0
        lines = []
        for line in run.stderr:
            epochs += "samples/s" in line
            lines.append(line)
            if epochs == 2:
                run.send_signal(number)
                epochs += 1
        run.wait(timeout=60)
    said = Said(run.returncode, "".join(lines), "")
    said.is_one_mistake(code, f"^p.yaml:7:5: teacher: {word}$", "the last checkpoint is kept")
    assert list((place.folder / "store/work").glob("*/checkpoint.pt"))
    report = place.report()
    assert (report["status"], report["exit_code"], report["error"]["stage"]) == ("failed", code, "teacher")
    assert (place.folder / "out/report.html").is_file()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_an_import_turns_into_its_own_error_is_still_one(
    number: int, code: int, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(*_: Any) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except BaseException:
            raise UnavailableError("openvino cannot be imported", hint="no") from None

    monkeypatch.setattr(runner, "check_board", importing)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores it
    try:
        said = place.run(FILE)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.code == code
    assert "openvino" not in said.err


def test_a_broken_budget_names_its_line(place: Place) -> None:
    gate = '  - {measure: size, of: teacher, max: "1 B"}\n'
    said = place.run(FILE + gate, "--to", "teacher")
    said.is_one_mistake(5, "^p.yaml:16:5: budget broken: size of teacher at most 1 B, measured", "change the limit")
    assert place.report()["status"] == "gate_failed"
