"""Mistakes in a file and on the command line: one line that says where and what, one of help, the exit code."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from mistakes import FILE, TEACHER, Place, edited

from edgekd.runtimes.protocol import Support

# name: (text of the file, what the error line says, what the help line says); each ends with exit code 2.
IN_THE_FILE: dict[str, tuple[str | bytes, str, str]] = {
    "wrong key": (edited(("batch: 32", "bacth: 32")), r"^p.yaml:5:9: unknown key 'bacth' in train$", "mean 'batch'"),
    "wrong key at the top": (edited(("gates:", "gaets:")), r"^p.yaml:14:1: unknown key 'gaets'", "mean 'gates'"),
    "wrong key in a stage": (edited(("epochs", "epoch")), r"^p.yaml:7:59: unknown key 'epoch' in teacher", "'epochs'"),
    "wrong key in data": (edited(("digits", "digit")), r"^p.yaml:3:3: unknown key 'digit' in data", "'digits'"),
    "stage for a key": (edited(("stages:", "stage:")), r"^p.yaml:6:1: unknown key 'stage'", "mean 'stages'"),
    "text for a number": (edited(("epochs: 1", "epochs: many")), r"^p.yaml:7:59: teacher.epochs: \"many\"", "number"),
    "fraction for a number": (edited(("epochs: 1", "epochs: 1.5")), r"^p.yaml:7:59: .*1.5", "whole number"),
    "list for a number": (edited(("batch: 32", "batch: [1]")), r"^p.yaml:5:9: train.batch: \[1\]", "whole number"),
    "number for a mapping": (edited(("digits: {}", "digits: 3")), r"^p.yaml:3:3: data.digits: 3", "a mapping"),
    "negative epochs": (edited(("epochs: 1", "epochs: -1")), r"^p.yaml:7:59: .*-1", "it should be at least 0"),
    "not a finite number": (edited(("32, prec", "32, lr: .nan, prec")), r"^p.yaml:5:24: .nan", "finite"),
    "name with a slash": (edited(("micro", "../x")), r"^p.yaml:1:1: name: '../x'", "letters, digits"),
    "unknown task": (edited(("name: micro", "name: micro\ntask: sorting")), r"^p.yaml:2:1: task: \"sorting\"", "known"),
    "unknown task of an output": (
        edited(("name: micro", "name: micro\ntask: {out: clasification}")), r"^p.yaml:2:8: task.out", "classification",
    ),
    "unknown stage": (edited(("- quantize", "- quantise")), r"^p.yaml:8:5: unknown stage", "mean 'quantize'"),
    "stage out of order": (
        edited(("  - quantize: {}\n  - export: {}\n", "  - export: {}\n  - quantize: {}\n")),
        r"^p.yaml:9:5: quantize stands after export", "the order is teacher, distill, quantize, export",
    ),
    "stage twice": (edited(("- export: {}", "- export: {}\n  - export: {}")), r"^p.yaml:10:5: .* twice", "remove one"),
    "no network": (edited((TEACHER, "")).partition("gates:")[0], r"^p.yaml:7:5: quantize has nothing", "or `teacher`"),
    "stages that are no list": (FILE.partition("stages:")[0] + "stages: {export: {}}\n", r"^p.yaml:6:1: stages", "e.g"),
    "stage with two names": (edited(("- export: {}", "- export: {}\n    x: 1")), r"^p.yaml:9:5: a stage is one", "e.g"),
    "missing folder": (edited(("digits: {}", "folder: {path: no}")), r"^p.yaml:3:12: data.folder.path: .*/no ", "jpg"),
    "missing parquet": (
        edited(("digits: {}", "parquet: {path: no, image: i}")), r"^p.yaml:3:13: data.parquet.path: .*/no", "relative",
    ),
    "missing archive": (edited(("digits: {}", "npz: {path: no.npz}")), r"^p.yaml:3:9: .*no.npz does not exist", "path"),
    "two data sources": (edited(("digits: {}", "digits: {}\n  npz: {path: x}")), r"^p.yaml:2:1: .*2 data", "keep one"),
    "raw frames of no images": (
        edited(("export: {}", "export: {raw_input: true}")),
        r"^p.yaml:9:14: raw_input: no input of the data is an image of uint8 \(image is float32", "images in files",
    ),
    "no data source": (edited(("digits: {}", "licence: MIT")), r"^p.yaml:2:1: .*no data source", "give one of"),
    "missing weights": (edited(("epochs: 1", "weights: w.pt")), r"^p.yaml:7:59: w.pt: no such file", "relative"),
    "duplicate key": (edited(("name: micro", "name: micro\nname: b")), r"^p.yaml:2:1: the key 'name'.*twice", "one"),
    "bad YAML": (edited(("{batch: 32,", "{batch: 32,,")), r"^p.yaml:5:19: not valid YAML", "colons and quotes"),
    "open bracket": (edited(("f32}\nst", "f32\nst")), r"^p.yaml:6:7: not valid YAML", "colons and quotes"),
    "tab": (edited(("  digits", "\tdigits")), r"^p.yaml:3:1: not valid YAML", "spaces, not with tabs"),
    "two documents": (FILE + "---\na: 1\n", r"^p.yaml:16:1: not valid YAML: expected a single document", "indentation"),
    "tag": (edited(("micro", "!!python/object:os.system x")), r"^p.yaml:1:7: the YAML tag", "plain data"),
    "alias within itself": ("name: &a [*a]\n", r"^p.yaml:1:\d+: nested too deeply", "alias"),
    "aliases of aliases": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
        r"^p.yaml:\d+:\d+: too much of it", "a page of YAML",
    ),
    "huge number": (edited(("batch: 32", f"batch: {'9' * 30}")), r"^p.yaml:5:16: too large", "63 bits"),
    "empty file": ("", r"^p.yaml:1:1: is no pipeline file", "start with `name:`"),
    "comment alone": ("# nothing\n", r"^p.yaml:1:1: is no pipeline file", "start with `name:`"),
    "not a mapping": ("- a\n- b\n", r"^p.yaml:1:1: is no pipeline file", "start with `name:`"),
    "not text": (bytes(range(256)), r"^p.yaml: is not UTF-8", "YAML"),
    "unknown zoo model": (edited(("model: convnet", "model: resnet21")), r"^p.yaml:7:15: .*'resnet21'", "did you mean"),
    "no model": (edited(("model: convnet, ", "")), r"^p.yaml:7:5: teacher.model is missing", "add `model:`"),
    "bad reference": (edited(("convnet", "'a b:c'")), r"^p.yaml:7:15: .*'a b:c'", "package.module:factory"),
    "no such module": (edited(("convnet", "nomodule:Net")), r"^p.yaml:7:15: .*nomodule", "nomodule.py"),
    "missing python_path": (FILE + "python_path: [nope]\n", r"^p.yaml:16:15: nope: no such folder", "relative"),
    "gate on an unknown target": (edited(('max: "50', 'target: orrt, max: "50')), r"^p.yaml:15:5: .*'orrt'", "ort"),
    "gate with a bad unit": (edited(("50 pt", "50 ms")), r"^p.yaml:15:5: gates.0: '50 ms' is no limit", '"1 pt"'),
    "gate without a number": (edited(("50 pt", "soon")), r"^p.yaml:15:5: gates.0: 'soon' is no limit", '"1 pt"'),
    "gate with two limits": (edited(('max: "50', 'min: "1 pt", max: "50')), r"^p.yaml:15:5: .*one limit", "e.g. max"),
    "gate on an unknown measure": (edited(("metric_drop", "metric_dorp")), r"^p.yaml:15:6: .*metric_dorp", "_drop'"),
    "gate on a network that is not made": (
        edited(("against: teacher", "against: student")), r"^p.yaml:15:5: .* names a student", "teacher, quantized",
    ),
    "int8 without quantize": (
        edited(("  - quantize: {}\n", ""), ("of: quantized", "of: teacher")), r"^p.yaml:12:3: target ort", "`quantize`",
    ),
    "bf16 for ONNX Runtime": (
        edited(("onnxruntime}", "onnxruntime, precision: [bf16]}")),
        r"^p.yaml:13:31: onnxruntime builds f32, f16 and int8 here, not bf16$", "leave bf16 to openvino, tensorrt",
    ),
    "bf16 for a GPU that has none": (
        edited(("onnxruntime}", 'tensorrt_rtx, precision: [bf16], compute_capabilities: ["7.5"]}')),
        r"^p.yaml:13:3: .*7.5 have no bf16", "leave bf16 out",
    ),
    "residual without int8": (
        edited(("onnxruntime}", "tensorrt_rtx, precision: [f16], residual: skip}")),
        r"^p.yaml:13:3: .*residual does nothing without int8", "add int8",
    ),
    "residual for ONNX Runtime": (
        edited(("onnxruntime}", "onnxruntime, residual: skip}")),
        r"^p.yaml:13:3: .*residual is an option of tensorrt and tensorrt_rtx", "remove it",
    ),
    "bench of more than an engine takes": (
        edited(("- evaluate: {}", "- bench: {batch: 9}"), ("onnxruntime}", "tensorrt, max_batch: 8}"))
        .partition("gates:")[0],
        r"^p.yaml:11:13: bench.batch 9 is above max_batch 8 of target ort", "max_batch: 9",
    ),
    "compile without targets": (FILE.partition("targets:")[0], r"^p.yaml:1:1: compile has no targets", "add `targets"),
    "unknown runtime": (edited(("onnxruntime", "onnxruntme")), r"^p.yaml:13:9: .*onnxruntme", "mean 'onnxruntime'"),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_THE_FILE)
def test_a_mistake_in_the_file_is_explained_with_its_place(name: str, place: Place) -> None:
    text, error, hint = IN_THE_FILE[name]
    place.run(text).is_one_mistake(2, error, hint)


def test_every_mistake_is_said_at_once_in_the_order_of_the_file(place: Place) -> None:
    said = place.run(edited(("batch: 32", "bacth: 32"), ("epochs: 1", "epochs: x"), ("50 pt", "50 ms")))
    assert (said.code, len(said.errors), len(said.help)) == (2, 3, 3)
    assert [line.split(" ")[0] for line in said.errors] == ["p.yaml:5:9:", "p.yaml:7:59:", "p.yaml:15:5:"]


ON_THE_COMMAND_LINE: dict[str, tuple[list[str], str, str]] = {
    "set without =": (["--set", "train.batch"], r"^--set train.batch: is not of the form", "--set distill.epochs=5"),
    "set without a name": (["--set", "=3"], r"^--set =3: is not of the form", "e.g"),
    "set with two dots": (["--set", "train..x=3"], r"^--set train..x=3: is not of the form", "e.g"),
    "set to nothing": (["--set", "teacher.epochs="], r"^--set teacher.epochs=: has no value", "teacher.epochs=null"),
    "set of an unknown stage": (["--set", "taecher.epochs=1"], r"^--set taecher.epochs: 'taecher'", "mean 'teacher'"),
    "set of an unknown key": (["--set", "teacher.epoch=1"], r"^--set teacher.epoch: unknown key", "mean 'epochs'"),
    "set of the wrong type": (["--set", "train.batch=x"], r"^--set train.batch: train.batch: \"x\"", "whole number"),
    "set inside a plain value": (["--set", "train.batch.x=3"], r"^--set train.batch.x: 'batch' holds", "shorten"),
    "set of bad YAML": (["--set", "train.batch=["], r"^--set train.batch:1:2: not valid YAML", "colons"),
    "set of all stages": (["--set", "stages=3"], r"^--set stages: stages are set by name", "teacher.epochs=5"),
    "set of an item that is not there": (["--set", "gates.7.max=3"], r"^--set gates.7.max: .*no item '7'", "from 0"),
    "set of the path of digits": (
        ["--set", "data.path=x"],
        r"^--set data.path: .*no one path \(given: `digits`\)",
        "learn",
    ),
    "to an unknown stage": (["--to", "exprot"], r"^--to exprot: this file has no such stage", "mean 'export'"),
    "force of an unknown stage": (["--force", "taecher"], r"^--force taecher: .*no such stage", "mean 'teacher'"),
    "unknown option": (["--bogus"], r"^no such option: --bogus", "`edgekd run --help`"),
    "unknown log format": (["--log-format", "xml"], r"^--log-format xml: 'xml' is not one of", "`edgekd run --help`"),
    "output folder is a file": (["--out", "p.yaml"], r"^--out p.yaml: is a file, not a folder", "with --out"),
    "output folder in a file": (["--out", "p.yaml/x"], r"^--out p.yaml/x: cannot be written", "with --out"),
    "store is a file": (["--store", "p.yaml"], r"^--store .*p.yaml: is a file, not a folder", "with --store"),
    "store that cannot be written": (["--store", "/proc/x"], r"^--store /proc/x: cannot be written", "with --store"),
}


@pytest.mark.parametrize("name", ON_THE_COMMAND_LINE)
def test_a_mistake_on_the_command_line_is_explained(name: str, place: Place) -> None:
    words, error, hint = ON_THE_COMMAND_LINE[name]
    place.run(FILE, *words).is_one_mistake(2, error, hint)


COMMANDS: dict[str, tuple[list[str], int, str, str]] = {
    "no command": ([], 2, "^edgekd needs a command: compress, run", "`edgekd --help`"),
    "unknown command": (["plna"], 2, "^no such command 'plna'. Did you mean 'plan'", "`edgekd --help`"),
    "no file": (["run"], 2, "^missing argument 'FILE'", "`edgekd run --help`"),
    "file that is not there": (
        ["run", "no.yaml"],
        2,
        "^no.yaml: cannot be read: No such file",
        "pipelines/digits.yaml",
    ),
    "folder for a file": (["run", "."], 2, r"^\.: cannot be read: Is a directory", "pipelines/digits.yaml"),
    "plan of a file that is not there": (["plan", "no.yaml"], 2, "^no.yaml: cannot be read", "pipeline"),
    "unknown list": (["list", "stges"], 2, "^list stges: there is no such list", "mean 'stages'"),
    "report of nothing": (["report", "no"], 2, "^cannot read no: No such file", "edgekd run"),
    "measure of nothing": (["measure", "no.onnx"], 2, "^no.onnx: no such file", "ONNX"),
    "measure with an unknown engine": (
        ["measure", "x", "--runtime", "ort"],
        2,
        "^--runtime ort: is not known",
        "known",
    ),
    "store without a command": (["store"], 2, "^edgekd store needs a command: ls, gc, verify", "`edgekd store --help`"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_be_is_explained(name: str, place: Place) -> None:
    words, code, error, hint = COMMANDS[name]
    place.call(*words).is_one_mistake(code, error, hint)


def test_an_unreadable_file_is_explained(place: Place) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can read every file")
    place.write(FILE)
    (place.folder / "p.yaml").chmod(0)
    place.run().is_one_mistake(2, "^p.yaml: cannot be read: Permission denied", "pipeline file")


def test_a_mistake_in_json_is_one_document(place: Place) -> None:
    said = place.run(edited(("batch: 32", "bacth: 32")), "--json")
    error = json.loads(said.out)["error"]
    assert (error["message"], error["hint"]) == ("p.yaml:5:9: unknown key 'bacth' in train", "did you mean 'batch'?")
    assert (error["exit_code"], len(error["problems"]), said.code) == (2, 1, 2)


def test_a_mistake_in_a_json_log_is_one_object_per_problem(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_LOG_FORMAT", "json")
    said = place.run(edited(("batch: 32", "bacth: 32"), ("50 pt", "50 ms")))
    rows = [json.loads(line) for line in said.err.splitlines()]
    assert [(row["level"], row["message"].split(" ")[0]) for row in rows] == [
        ("error", "p.yaml:5:9:"), ("error", "p.yaml:15:5:"),
    ]  # fmt: skip


def test_a_mistake_in_a_github_job_marks_its_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    said = place.run(edited(("batch: 32", "bacth: 32")))
    assert "::error file=p.yaml,line=5,col=9::unknown key 'bacth' in train" in said.err.splitlines()


def test_a_broken_budget_in_a_github_job_marks_its_line_and_leaves_json_one_document(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(place.folder.parent))
    text = edited(
        (
            '{measure: metric_drop, of: quantized, against: teacher, max: "50 pt"}',
            '{measure: size, of: teacher, max: "1 B"}',
        )
    )
    said = place.run(text, "--to", "teacher", "--json")
    assert (said.code, json.loads(said.out)["status"]) == (5, "gate_failed")
    (marked,) = [line for line in said.err.splitlines() if line.startswith("::error ")]
    assert marked.startswith(
        f"::error file={place.folder.name}/p.yaml,line=15,col=5::budget broken: size of teacher at most 1 B"
    )


def test_an_engine_that_is_missing_is_named_with_the_command_that_installs_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.runtimes.tensorrt.importlib.util.find_spec", lambda _: None)
    said = place.run(edited(("onnxruntime", "tensorrt")))
    said.is_one_mistake(3, "^p.yaml:13:9: tensorrt is not installed$", r"^pip install .*\[tensorrt\]'?$")
    assert set(place.states().values()) == {"skipped"}


def test_an_engine_that_needs_a_gpu_for_evaluate_is_refused_before_any_training(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.runtimes.tensorrt.TensorRtRtx.version", lambda _: "1.7")
    monkeypatch.setattr("edgekd.runtimes.tensorrt.has_gpu", lambda: False)
    said = place.run(edited(("onnxruntime", "tensorrt_rtx")))
    said.is_one_mistake(3, "^p.yaml:13:9: tensorrt_rtx engines run on an NVIDIA GPU", "`evaluate` and `bench`")
    assert not list((place.folder / "store").glob("objects/*"))


def test_a_gpu_that_rtx_does_not_know_is_refused_before_any_training(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.runtimes.tensorrt.TensorRtRtx.version", lambda _: "1.7")
    monkeypatch.setattr("edgekd.runtimes.tensorrt.TensorRtRtx.supports", lambda _: Support((), ("8.6", "8.9")))
    file = edited(("  - evaluate: {}\n", ""), ("onnxruntime}", 'tensorrt_rtx, compute_capabilities: ["8.7"]}'))
    said = place.run(file.partition("gates:")[0])
    said.is_one_mistake(3, r"^p.yaml:12:32: tensorrt_rtx 1.7 does not build for .* 8\.7$", "may hold: 8.6, 8.9$")
    assert not list((place.folder / "store").glob("objects/*"))


def test_images_with_their_channels_last_are_a_mistake_of_the_file(place: Place) -> None:
    np.savez(place.folder / "set.npz", x=np.zeros((30, 8, 8, 3), np.uint8), y=np.arange(30) % 3)
    said = place.run(edited(("digits: {}", "npz: {path: set.npz}")))
    said.is_one_mistake(2, r"^p.yaml:3:3: data.npz.layout: .*set.npz array 'x' .*channels last$", "`layout: nhwc`")


OWN = """
def bent(student, teacher):
    return student.view(7, 11, 13).mean()
"""
LEARNS = "self_distillation: true, epochs: 1, knowledge"
# What only the networks can tell of `quantize`: (its options, what the error line says, what the help line says).
IN_QUANTIZE = {
    "layers of no network": ("layers: {conv9: float}", "no layer fits 'conv9'", "."),
    "knowledge of no layer": (f"{LEARNS}: [{{hint: {{layers: [[conv9, conv9]]}}}}]", "no layer 'conv9'", "."),
    "pairs that do not fit": (f"{LEARNS}: [{{fsp: {{layers: auto}}}}], guides: [teacher]", "fsp", "."),
    "knowledge of one's own": (f"{LEARNS}: [{{own_loss:bent: {{}}}}]", "own_loss:bent", "."),
}


@pytest.mark.parametrize("name", IN_QUANTIZE)
def test_what_does_not_fit_the_quantized_network_is_known_before_anything_is_trained(name: str, place: Place) -> None:
    options, error, hint = IN_QUANTIZE[name]
    place.write(OWN, "own_loss.py")
    student = "  - distill: {student: convnet, args: {width: 6, depth: 3}, epochs: 1}\n"
    said = place.run(edited((TEACHER, TEACHER + student), ("quantize: {}", f"quantize: {{{options}}}")))
    said.is_one_mistake(2, rf"^p.yaml:9:5: .*{error}", hint)
    assert set(place.states().values()) == {"skipped"}
    assert not list((place.folder / "store").glob("objects/*"))


def test_a_device_that_is_not_here_is_refused(place: Place) -> None:
    said = place.run(edited(("onnxruntime}", "onnxruntime, device: TPU}")))
    said.is_one_mistake(3, "^p.yaml:13:31: ONNX Runtime has no provider for TPU", "device: CPU")
