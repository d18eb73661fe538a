"""Further tables in a pipeline: stages that use them run again when they change, the others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mistakes import Place
from safetensors.torch import load_file

from edgekd.distill.schemes.choose import Cast
from edgekd.distill.schemes.recipe import Recipe
from edgekd.stages.settings import DistillStage
from edgekd.train.world import Phase

FILE = """\
name: tables
data:
  npz: {path: train.npz}
  tables:
    more: {npz: {path: more.npz}}
    other: {npz: {path: other.npz}}
train: {batch: 16, precision: f32, threads: 1}
stages:
  - teacher: {model: "nets:mlp", epochs: 1}
  - distill: {student: "nets:mlp", epochs: 2}
  - quantize: {}
  - export: {min_agreement: 0.1}
"""
NETS = """
from torch import nn


def mlp(in_channels, num_classes):
    return nn.Sequential(nn.Linear(in_channels, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def archive(path: Path, n: int, *, labels: bool = False, width: int = 5, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    arrays = {"x": rng.normal(size=(n, width)).astype(np.float32)}
    np.savez(path, **arrays, **({"y": np.arange(n) % 3} if labels else {}))


@pytest.fixture
def uses(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that the distill stage uses: a scheme learns from the teacher alone on the first of them."""
    names = ["more"]

    def phases(recipe: Recipe, settings: Any, cast: Cast) -> list[Phase]:
        return [recipe.phase("label_free", "student", recipe.teaching("student", "teacher"), data=names[0])]

    monkeypatch.setattr(DistillStage, "tables_used", property(lambda self: tuple(names)), raising=False)
    monkeypatch.setattr("edgekd.stages.distill.phases_of", phases)
    archive(place.folder / "train.npz", 90, labels=True)
    archive(place.folder / "more.npz", 50)
    archive(place.folder / "other.npz", 40)
    (place.folder / "nets.py").write_text(NETS)
    return names


def test_only_stages_that_use_a_table_run_again_when_it_changes(place: Place, uses: list[str]) -> None:
    said = place.run(FILE)
    assert said.code == 0, said.err
    assert place.run(FILE).code == 0
    assert set(place.states().values()) == {"cached"}
    archive(place.folder / "other.npz", 40, seed=1)
    assert place.run(FILE).code == 0
    assert set(place.states().values()) == {"cached"}
    archive(place.folder / "more.npz", 50, seed=1)
    said = place.run(FILE)
    assert place.states() == {"teacher": "cached", "distill": "ran", "quantize": "ran", "export": "ran"}
    assert "distill: changed: tables.more" in said.err


def test_a_teacher_is_asked_once_about_the_samples_of_a_table(place: Place, uses: list[str]) -> None:
    weights = place.folder / "out" / "artifacts" / "student.safetensors"
    said = place.run(FILE)
    assert "outputs of the teacher are cached: 1 views of 50 samples" in said.err
    cached = load_file(weights)
    said = place.run(FILE, "--set", "train.teacher_cache=off", "--force", "distill")
    assert "outputs of the teacher are live" in said.err
    for name, value in load_file(weights).items():
        torch.testing.assert_close(value, cached[name])


def test_labels_can_be_scarce_on_any_data(place: Place, uses: list[str]) -> None:
    uses[0] = "unlabelled"
    place.write(FILE.replace("  tables:\n", "  labelled: 30\n  tables:\n"))
    said = place.run()
    assert said.code == 0, said.err
    assert place.report()["data"]["n"]["train"] == 30
    assert place.run(None, "--set", "data.labelled=20").code == 0
    assert set(place.states().values()) == {"ran"}


@pytest.mark.parametrize(
    ("table", "old", "new", "error", "hint"),
    [
        ("mor", "more", "more", r"^p.yaml:10:5: the data has no table 'mor'$", "^did you mean 'more'"),
        ("unlabelled", "a", "a", r"^p.yaml:10:5: the data has no table 'unlabelled'$", "^known are: more, other$"),
        ("more", "more.npz", "no.npz", r"^p.yaml:5:18: data.tables.more.npz.path: .*/no.npz does not exist$", "^check"),
        ("more", "more.npz", "narrow.npz", r"^p.yaml:5:5: data.tables.more: a row of 'x' is \(4,\) float32", "alike"),
        ("unlabelled", "  tab", "  labelled: 65\n  tab", r"^p.yaml:4:3: data.labelled: 65 labels of 65 ", "^lower it"),
    ],
)
def test_a_mistake_in_a_table_is_explained(
    table: str, old: str, new: str, error: str, hint: str, place: Place, uses: list[str]
) -> None:
    uses[0] = table
    archive(place.folder / "narrow.npz", 50, width=4)
    place.run(FILE.replace(old, new)).is_one_mistake(2, error, hint)
    assert not (place.folder / "out" / "artifacts" / "teacher.safetensors").exists()


def test_a_table_that_cannot_be_read_is_said_where_it_is_named(place: Place, uses: list[str]) -> None:
    archive(place.folder / "more.npz", 0)
    place.run(FILE).is_one_mistake(4, r"^p.yaml:5:5: data.tables.more: it has no rows$", "^add samples")


def test_a_name_that_cannot_be_a_table_is_explained(place: Place) -> None:
    place.run(FILE.replace("more:", "train:")).is_one_mistake(
        2, r"^p.yaml:5:5: data.tables.train: 'train' is a split of the data itself$", "another name"
    )


def test_a_table_of_nobody_is_described_first(place: Place, uses: list[str]) -> None:
    text = FILE.partition("  tables:")[0] + "train:" + FILE.partition("train:")[2]
    place.run(text).is_one_mistake(2, r"^p.yaml:\d+:5: the data has no table 'more'$", r"^describe it as `data: ")
