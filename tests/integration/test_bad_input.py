"""Bad input of the commands for one's own network and data: a table; each ends in one line, one of help, the code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import test_mistakes
import torch
from mistakes import Place
from PIL import Image

NETS = """\
import torch
from torch import nn

def build(width: int = 4, num_classes: int = 2):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.Flatten(), nn.LazyLinear(num_classes))

def small(width: int = 4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        if x.sum() > 0:
            return self.layer(x)
        return -self.layer(x)

def raises():
    raise RuntimeError("no licence")

def nothing():
    return None

network = nn.Linear(4, 2)
"""


class Runs:
    def __reduce__(self) -> object:
        return os.mkdir, ("proof",)


@pytest.fixture
def kitchen(place: Place) -> Place:
    """A folder with networks, weights and data, right and wrong ones."""
    place.write(NETS, "nets.py")
    place.write("import torch\nx = (\n", "broken.py")
    folder = place.folder
    torch.save({"a": Runs()}, folder / "evil.pt")
    torch.save({"0.weight": torch.zeros(9, 3, 3, 3)}, folder / "other.pt")
    for name, content in (("cut.safetensors", b"\x08"), ("w.txt", b"x"), ("p.pt2", b"PK"), ("bad.onnx", b"nothing")):
        (folder / name).write_bytes(content)
    for split, side in (("train", 8), ("train", 8), ("test", 8)):
        for label in ("cat", "dog"):
            where = folder / "images" / split / label
            where.mkdir(parents=True, exist_ok=True)
            for index in range(4):
                Image.fromarray(np.full((side, side, 3), 40 * index, np.uint8)).save(where / f"{index}.png")
    _images(folder / "sizes", {"a/1.png": 8, "a/2.png": 9, "b/1.png": 8})
    _images(folder / "mixed", {"a/1.png": 8, "2.png": 8})
    _images(folder / "untrained", {"test/a/1.png": 8})
    (folder / "empty").mkdir()
    (folder / "tables").mkdir()
    (folder / "tables/train.parquet").write_bytes(b"PAR1 nothing PAR1")
    (folder / "one.parquet").write_bytes(b"PAR1")
    (folder / "bad.npz").write_bytes(b"PK")
    np.savez(folder / "arrays.npz", x=np.zeros((20, 4), np.float32), y=np.zeros(20, np.int64))
    (folder / "build").mkdir()
    (folder / "build/model.json").write_text("{")
    (folder / "card").mkdir()
    card = {"runtime": "onnxruntime", "device": "CPU", "file": "../evil.pt", "inputs": {}, "outputs": {}, "classes": []}
    (folder / "card/model.json").write_text(json.dumps({**card, "labels": {}}))
    (folder / "full").mkdir()
    (folder / "full/x").write_text("")
    return place


def _images(folder: Path, sides: dict[str, int]) -> None:
    for name, side in sides.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side)).save(folder / name)


COMPRESS = ["compress", "--model", "nets:small", "--data", "images", "--target", "onnxruntime", "--dry-run"]


def instead(option: str, *values: str) -> list[str]:
    """The right command line with another value of one option; without a value the option is left out."""
    place = COMPRESS.index(option)
    return [*COMPRESS[:place], *((option, *values) if values else ()), *COMPRESS[place + 2 :]]


CHECK = ["check", "--model", "nets:small", "--input", "1x3x8x8"]

# name: (command line, exit code, what the error line says, what the help line says)
TABLE: dict[str, tuple[list[str], int, str, str]] = {
    "no model": (instead("--model"), 2, "missing option '--model'", "compress --help"),
    "no data": (instead("--data"), 2, "missing option '--data'", "compress --help"),
    "no target": (instead("--target"), 2, "missing option '--target'", "compress --help"),
    "unknown engine": (instead("--target", "openvin"), 2, "no engine is called 'openvin'", "mean 'openvino'"),
    "target twice": ([*COMPRESS, "--target", "onnxruntime"], 2, "is given twice", "once"),
    "target at no host": (instead("--target", "onnxruntime@"), 2, "names no device behind @", "ssh://"),
    "unknown zoo network": (instead("--model", "resnet21"), 2, "unknown model 'resnet21'", "did you mean"),
    "a reference that is none": (instead("--model", "a b:c"), 2, "no reference to a factory", "package.module"),
    "a file of weights as the network": (instead("--model", "best.pt"), 2, "is no network", "--?weights|factory"),
    "an exported program": (instead("--model", "net.pt2"), 2, r"\(.pt2\) is refused", "factory"),
    "weights that are not there": ([*COMPRESS, "--weights", "no.pt"], 2, "there is no such file", "trained weights"),
    "a folder as weights": ([*COMPRESS, "--weights", "images"], 2, "is a folder", "trained weights"),
    "an argument without a value": ([*COMPRESS, "--args", "width"], 2, "not of the form name=value", "width=32"),
    "an argument of bad YAML": ([*COMPRESS, "--args", "width=["], 2, "--args width:1:2: not valid YAML", "colons"),
    "data that is not there": (instead("--data", "nothing"), 2, "--data nothing: does not exist", "a folder or a file"),
    "a folder without images": (instead("--data", "empty"), 2, "holds no images", "CLASS|class"),
    "images in and beside classes": (instead("--data", "mixed"), 2, "both in and beside class folders", "train/"),
    "test without train": (instead("--data", "untrained"), 2, "holds test but no train folder", "train/"),
    "images of several sizes": (instead("--data", "sizes"), 2, "images differ in size", "--size HEIGHTxWIDTH"),
    "a file that is no Parquet": (instead("--data", "one.parquet"), 4, "not a readable Parquet", "write it again"),
    "Parquet that is none": (instead("--data", "tables"), 4, "not a readable Parquet file", "write it again"),
    "an archive that is none": (instead("--data", "bad.npz"), 4, "not a readable NumPy archive", "numpy.savez"),
    "a file of another kind": (instead("--data", "nets.py"), 2, "no kind of data", "a folder"),
    "an ONNX file without a student": (instead("--model", "x.onnx"), 2, "an ONNX file can only teach", "add --student"),
    "a size for arrays": ([*instead("--data", "arrays.npz"), "--size", "8"], 2, "is for images", "leave --size"),
    "a size that is none": ([*COMPRESS, "--size", "8y8"], 2, "--size 8y8: is no size", "224x224"),
    "a fit without a size": ([*COMPRESS, "--fit", "crop"], 2, "--fit crop: does nothing without", "--size 224x224"),
    "a fit that is none": ([*COMPRESS, "--size", "8", "--fit", "cut"], 2, "--fit cut: is not known", "crop"),
    "a size of zero": ([*COMPRESS, "--size", "0"], 2, "--size 0: is no size", "224x224"),
    "two channels": ([*COMPRESS, "--channels", "2"], 2, "images have 1 or 3", "--channels 1"),
    "normalisation that is none": ([*COMPRESS, "--normalize", "0.5"], 2, "no mean and deviation", "imagenet"),
    "normalisation by zero": ([*COMPRESS, "--normalize", "0.5/0"], 2, "no mean and deviation", "imagenet"),
    "means for other channels": ([*COMPRESS, "--normalize", ".5,.5/.1,.1"], 2, "2 means for 3 channels", "give 3"),
    "an unknown task": ([*COMPRESS, "--task", "sorting"], 2, "--task sorting: is not known", "classification or"),
    "epochs without a student": ([*COMPRESS, "--epochs", "3"], 2, "--epochs without a --student", "add --student"),
    "arguments without a student": ([*COMPRESS, "--student-args", "a=1"], 2, "without a --student", "add --student"),
    "no epochs": ([*COMPRESS, "--student", "nets:small", "--epochs", "0"], 2, "--epochs 0: it should be", "--help"),
    "a student that is an ONNX file": ([*COMPRESS, "--student", "bad.onnx"], 2, "can teach, and not learn", "PyTorch"),
    "a limit that is none": ([*COMPRESS, "--max-drop", "much"], 2, "'much' is no limit", '"1 pt"'),
    "an output folder that is a file": ([*COMPRESS, "--out", "nets.py"], 2, "--out nets.py: is a file", "--out"),
    "a name with a slash": ([*COMPRESS, "--name", "a/b"], 2, "'a/b' cannot name a folder", "letters"),
    "check of nothing": (["check"], 2, "a pipeline file or --model", "edgekd check --model"),
    "check without a shape": (CHECK[:3], 2, "--input is missing", "--input 1x3x224x224"),
    "a shape that is none": ([*CHECK[:4], "3,8,8"], 2, "--input 3,8,8: is no shape", "1x3x224x224"),
    "two shapes without names": ([*CHECK, "--input", "1x4"], 2, "has no name", "--input image="),
    "weights beside a file": (["check", "p.yaml", "--weights", "evil.pt"], 2, "beside a pipeline", "leave --w"),
    "predict by what is no build": (["predict", "images", "x.png"], 2, "there is no model.json", "builds"),
    "predict by a damaged build": (["predict", "build", "x.png"], 2, "model.json: cannot be read", "again"),
    "a build that points elsewhere": (["predict", "card", "x.png"], 2, "names no file beside it", "build it again"),
    "evaluate what is no build": (["evaluate", "images", "--data", "images"], 2, "there is no model.json", "builds"),
    "bundle of no run": (["bundle", "empty"], 2, "cannot read empty", "edgekd run"),
    "new in a folder that is full": (["new", "full"], 2, "full: is there and not empty", "new folder"),
    "measure what is no ONNX file": (["measure", "bad.onnx"], 2, "bad.onnx: not an ONNX file", "again"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_explained_in_two_lines(name: str, kitchen: Place) -> None:
    words, code, error, hint = TABLE[name]
    kitchen.call(*words).is_one_mistake(code, error, hint)
    assert not Path("proof").exists()


def test_fifty_kinds_of_bad_input_are_in_tables() -> None:
    assert len(TABLE) >= 50
    others = (test_mistakes.IN_THE_FILE, test_mistakes.ON_THE_COMMAND_LINE, test_mistakes.COMMANDS)
    assert len(TABLE) + sum(map(len, others)) >= 100


# What shows when the network is made, by `check`: (options, what is said of it, what helps).
NETWORKS: dict[str, tuple[list[str], str, str]] = {
    "weights that want to run code": (["--model", "nets:small", "--weights", "evil.pt"], "refused", "models.convert"),
    "weights of another network": (["--model", "nets:small", "--weights", "other.pt"], "does not fit", "num_classes"),
    "damaged weights": (["--model", "nets:small", "--weights", "cut.safetensors"], "damaged", "again"),
    "a program as weights": (["--model", "nets:small", "--weights", "p.pt2"], "refused: its loader", "safetensors"),
    "text as weights": (["--model", "nets:small", "--weights", "w.txt"], "not a file of weights", "safetensors"),
    "a module that is not there": (["--model", "nothing:build"], "no module 'nothing'", "broken, nets"),
    "a module with an error": (["--model", "broken:build"], r"broken.py:2: SyntaxError", "import broken"),
    "a factory that is not there": (["--model", "nets:biuld"], "has no 'biuld'", "mean 'build'"),
    "a factory that raises": (["--model", "nets:raises"], r"nets.py:\d+: RuntimeError: no licence", "args"),
    "a factory that makes nothing": (["--model", "nets:nothing"], "of type NoneType", "network itself"),
    "a network for a factory": (["--model", "nets:network"], "is a network, not a factory", "function"),
    "an argument that it does not take": (
        ["--model", "nets:small", "--args", "wdth=3"],
        "no argument 'wdth'",
        "'width'",
    ),
    "a shape that does not fit": (["--model", "nets:small", "--input", "1x4x8x8"], "fails on", "--input"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_cannot_be_is_explained(name: str, kitchen: Place) -> None:
    words, error, hint = NETWORKS[name]
    shape = [] if "--input" in words else ["--input", "1x3x8x8"]
    said = kitchen.call("check", *words, *shape, "--target", "onnxruntime")
    said.is_one_mistake(2, error, hint)
    assert said.out == ""
    assert not Path("proof").exists()


def test_a_network_that_cannot_be_captured_names_its_line(kitchen: Place) -> None:
    said = kitchen.call("check", "--model", "nets:Branches", "--input", "1x4", "--target", "onnxruntime")
    line = 1 + NETS.splitlines().index("        if x.sum() > 0:")
    said.is_one_mistake(4, rf"the network cannot be captured.*\(nets.py:{line}\)", "branch|torch")
    assert "NO   the network cannot be captured" in said.out
    said = kitchen.call("check", "--model", "nets:Branches", "--input", "1x4", "--target", "onnxruntime", "--json")
    (document,) = json.loads(said.out)
    assert [step["name"] for step in document["steps"] if not step["ok"]] == ["captured"]
    said.is_one_mistake(4, "the network cannot be captured", "")


def test_the_malicious_pickle_of_this_table_would_run() -> None:
    with pytest.raises(FileExistsError):
        pickle.loads(pickle.dumps(_Existing()))


class _Existing:
    def __reduce__(self) -> object:
        return os.mkdir, ("/",)
