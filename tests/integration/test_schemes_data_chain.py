"""Schemes by what the data is, from a pipeline file: tables, columns, heads, critics and generators are there."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from mistakes import Place

NETS = """
from torch import nn


def mlp(in_channels, num_classes, width=16):
    layers = [nn.Linear(in_channels, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


class Heads(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.kind, self.large = nn.Linear(width, 3), nn.Linear(width, 2)

    def forward(self, x):
        found = self.body(x)
        return self.kind(found), self.large(found)
"""
DIGITS = "data: {digits: {}, labelled: 100, limit: {train: 320, validation: 64}}\ntrain: {batch: 32}\n"
COLUMNS = """
data:
  npz: {path: a.npz, inputs: [star, x], targets: [kind]}
  tables: {target: {npz: {path: b.npz, inputs: [star, x]}}, public: {npz: {path: b.npz, inputs: [star, x]}}}
train: {batch: 32, optimizer: adamw}
"""
HEADS = """
task: {kind: classification, large: classification}
data: {npz: {path: a.npz, inputs: [x], targets: [kind, large]}}
train: {batch: 32, optimizer: adamw}
"""
CONVNET = "  - teacher: {model: convnet, args: {width: 8}, epochs: 1}\n"
STAR = "  - teacher: {model: 'nets:mlp', inputs: [star], epochs: 1}\n"
X = "  - teacher: {model: 'nets:mlp', inputs: [x], epochs: 1}\n"
CASES = {
    "label_free": (DIGITS, CONVNET, "student: convnet, args: {width: 4}"),
    "label_free on train": (
        DIGITS,
        CONVNET,
        "student: convnet, args: {width: 4}, label_free: {transfer: train}",
    ),
    "privileged": (COLUMNS, STAR, "student: 'nets:mlp', inputs: [x], privileged: {imitation: 0.5}"),
    "cross_modal": (COLUMNS, STAR, "student: 'nets:mlp', inputs: [x], cross_modal: {pairs: target}"),
    "expansion": (DIGITS, CONVNET, "student: convnet, args: {width: 4}, expansion: {rounds: 2}"),
    "adaptation": (COLUMNS, X, "adaptation: {rounds: 2, confident: 0.34}"),
    "adversarial": (DIGITS, CONVNET, "student: convnet, args: {width: 4}"),
    "multi_task": (
        HEADS,
        "",
        "student: 'nets:Heads', "
        "multi_task: {teachers: {kind: {model: 'nets:mlp'}, large: {model: 'nets:mlp', epochs: 1}}}",
    ),
    "federated": (COLUMNS, "", "student: 'nets:mlp', inputs: [x], federated: {clients: 2, rounds: 2}"),
    "federated, clients of their own": (
        COLUMNS,
        "",
        "student: 'nets:mlp', inputs: [x], federated: {clients: [{model: 'nets:mlp', inputs: [x], args: {width: 8}}, "
        "{model: 'nets:mlp', inputs: [star]}], rounds: 1}",
    ),
    "data_free": (DIGITS, CONVNET, "student: convnet, args: {width: 4}, data_free: {rows: 64, width: 4}"),
    "data_free of vectors": (COLUMNS, X, "student: 'nets:mlp', inputs: [x], data_free: {rows: 64, width: 4}"),
}
PHASES: dict[str, list[tuple[str, set[str]]]] = {
    "label_free": [("label_free", {"kd"})],
    "label_free on train": [("label_free", {"kd"})],
    "privileged": [("privileged", {"cross_entropy", "kd"})],
    "cross_modal": [("cross_modal", {"kd"})],
    "expansion": [("expansion 0", {"kd"}), ("expansion 1", {"kd"})],
    "adaptation": [("adaptation 0", {"cross_entropy"}), ("adaptation 1", {"cross_entropy"})],
    "adversarial": [("adversarial", {"critic of teacher", "critic of student", "cross_entropy", "kd", "adversarial"})],
    "multi_task": [
        ("kind", {"cross_entropy"}),
        ("large", {"cross_entropy"}),
        ("multi_task", {f"{head}.{term}" for head in ("kind", "large") for term in ("cross_entropy", "kd")}),
    ],
    "federated": [
        ("split", set()),
        *(
            (f"{name} {number}", terms)
            for number in range(2)
            for name, terms in (
                ("client_0", {"cross_entropy"}),
                ("client_1", {"cross_entropy"}),
                ("lesson of student", {"kd"}),
            )
        ),
    ],
}


def pipeline(case: str) -> str:
    head, teacher, options = CASES[case]
    scheme = case.partition(" ")[0].rstrip(",")
    return f"name: p\n{head.lstrip()}stages:\n{teacher}  - distill: {{scheme: {scheme}, {options}, epochs: 1}}\n"


@pytest.fixture
def data(place: Place) -> Place:
    """Columns that tell the class (star) and half of it (x), in two domains; and networks for them."""
    rng = np.random.default_rng(0)
    for name, rows, shift in (("a", 300, 0.0), ("b", 100, 0.3)):
        kind = rng.integers(0, 3, rows)
        star = (np.eye(6)[kind] * 3 + rng.normal(shift, 0.5, (rows, 6))).astype(np.float32)
        x = (np.eye(4)[kind] + rng.normal(shift, 0.7, (rows, 4))).astype(np.float32)
        labels = {"kind": kind, "large": (kind == 2).astype(np.int64)} if name == "a" else {}
        np.savez(place.folder / f"{name}.npz", x=x, star=star, **labels)
    (place.folder / "nets.py").write_text(NETS)
    return place


def curves(place: Place) -> list[dict[str, Any]]:
    phases: list[dict[str, Any]] = json.loads((place.folder / "out/artifacts/student.curves.json").read_text())[
        "phases"
    ]
    return phases


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_scheme_runs_from_a_pipeline_file_and_is_cached_afterwards(case: str, data: Place) -> None:
    said = data.run(pipeline(case), "--to", "distill")
    assert said.code == 0, said.err
    found = [(phase["name"], set(phase["terms"])) for phase in curves(data)]
    if case in PHASES:
        assert found == PHASES[case]
    if "data_free" in case:
        assert found[0][1] >= {"one_hot", "entropy", "disagreement sought", "kd", "disagreement"}
        assert any(term.startswith("bn_statistics") for term in found[0][1])
    cached = case in ("label_free", "label_free on train", "privileged", "cross_modal", "adversarial")
    assert ("outputs of the teacher are cached" in said.err) == cached, said.err
    for note in ("expansion is for students at least as large", "the student learns without noise"):
        assert (note in said.err) == (case == "expansion")
    data.run(None, "--to", "distill")
    assert set(data.states().values()) == {"cached"}


MISTAKES = {
    "no such table": (
        "label_free",
        ("width: 4}", "width: 4}, label_free: {transfer: unlabeled}"),
        r"the data has no table 'unlabeled'",
        "'unlabelled'",
    ),
    "no tables": ("label_free", ("labelled: 100, ", ""), r"the data has no table 'unlabelled'", "tables"),
    "same inputs": (
        "privileged",
        ("inputs: [star]", "inputs: [x]"),
        r"teacher and student see the same \(x\)",
        "inputs",
    ),
    "same modality": ("cross_modal", ("inputs: [x]", "inputs: [star]"), r"see the same \(star\)", "inputs"),
    "task weight": (
        "label_free",
        ("epochs: 1}\n", "epochs: 1, task_weight: 1}\n"),
        r"task_weight does nothing",
        "offline",
    ),
    "knowledge": (
        "expansion",
        ("rounds: 2}", "rounds: 2}, knowledge: [kd]"),
        r"knowledge does nothing",
        "pseudo-labels",
    ),
    "said twice": (
        "privileged",
        ("0.5}", "0.5}, task_weight: 1"),
        r"privileged and task_weight say",
        "keep one",
    ),
    "another network": (
        "adaptation",
        ("adaptation: {", "student: 'nets:Heads', adaptation: {"),
        r"own network",
        "leave",
    ),
    "critic of two sizes": (
        "adversarial",
        ("width: 4}", "width: 4}, adversarial: {layers: [layer1, layer1]}"),
        r"one critic cannot see 4 channels of the student and 8",
        "as many channels",
    ),
    "no specialist": (
        "multi_task",
        (", large: {model: 'nets:mlp', epochs: 1}", ""),
        r"nobody teaches the head 'large'",
        "specialist",
    ),
    "no such head": ("multi_task", ("large: {model", "larg: {model"), r"there is no head 'larg'", "'large'"),
    "too uneven": ("federated", ("rounds: 2", "rounds: 2, least: 200"), r"cannot be split", "concentration"),
    "two inputs": (
        "data_free of vectors",
        ("inputs: [x], data", "inputs: [star], data"),
        r"makes one input",
        "same",
    ),
    "no such layer": (
        "data_free",
        ("rows: 64", "rows: 64, features: heed"),
        r"teacher has no module 'heed'",
        "near",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_a_scheme_is_said_in_one_line_before_anything_is_trained(name: str, data: Place) -> None:
    case, (old, new), error, hint = MISTAKES[name]
    text = pipeline(case)
    assert old in text
    head, mark, stage = text.rpartition("  - distill")
    changed = head + mark + stage.replace(old, new, 1) if old in stage else text.replace(old, new, 1)
    data.run(changed, "--to", "distill").is_one_mistake(2, error, hint)
    assert not list((data.folder / "store").glob("**/*.safetensors"))
