"""docs/extending.md through the command line: a scheme and knowledges of the user's own, and mistakes in them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from chain import Workshop
from mistakes import Place, Said

from edgekd.config import entry_points

SMALL = ["--set", "data.limit={train: 128, validation: 32, test: 32}", "--set", "teacher.epochs=1"]
SMALL += ["--set", "distill.epochs=1", "--set", "distill.options.stage_epochs=1", "--to", "distill"]


@pytest.fixture
def own(place: Place, own_code: Path) -> Place:
    """A place with the package and the pipeline file of the page."""
    shutil.copytree(own_code, place.folder, dirs_exist_ok=True)
    return place


def rewritten(place: Place, file: str, old: str, new: str) -> None:
    text = (place.folder / file).read_text()
    assert old in text
    (place.folder / file).write_text(text.replace(old, new))


def plan(place: Place, *words: str) -> Said:
    return place.call("plan", "p.yaml", "--store", "store", *words)


@pytest.mark.slow
def test_the_page_runs_and_a_change_of_the_users_code_runs_it_again(own: Place) -> None:
    said = own.run(None, *SMALL)
    assert said.code == 0, said.err
    assert own.states()["distill"] == "ran"
    curves = json.loads((own.folder / "out/artifacts/student.curves.json").read_text())["phases"]
    assert [phase["name"] for phase in curves][-1] == "layerwise"
    assert len(curves) > 2
    assert set(curves[-1]["terms"]) >= {"cross_entropy", "kd", "my_pkg.losses:cosine"}
    assert any(name.startswith("my_pkg.losses:projected_cosine") for name in curves[-1]["terms"])
    assert "my_pkg.losses:projected_cosine compares" in said.err
    words = SMALL[:-2]
    assert "unchanged" in plan(own, *words).out
    rewritten(own, "my_pkg/losses.py", "1.0 - cos", "1.5 - cos")
    again = plan(own, *words)
    assert "own.my_pkg.losses:cosine" in again.out
    assert "own.my_pkg.schemes:layerwise" in again.out  # the whole package counts
    rewritten(own, "my_pkg/losses.py", "1.5 - cos", "1.0 - cos")
    assert "own." not in plan(own, *words).out


@pytest.mark.slow
def test_entry_points_give_short_names_that_run_and_are_listed(
    own_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed"
    shutil.copytree(own_code / "dist", installed)
    shutil.move(own_code / "my_pkg", installed / "my_pkg")
    monkeypatch.setenv("PYTHONPATH", str(installed), prepend=":")
    made = Workshop(tmp_path)
    text = (own_code / "p.yaml").read_text().replace("my_pkg.schemes:", "").replace("my_pkg.losses:", "")
    made.write(text)
    result = made.run(*SMALL)
    assert result.code == 0, result.err
    phases = json.loads((made.out / "artifacts/student.curves.json").read_text())["phases"]
    assert set(phases[-1]["terms"]) >= {"cross_entropy", "kd", "cosine"}


def test_entry_points_are_listed_with_their_options(own: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(own.folder))
    monkeypatch.syspath_prepend(str(own.folder / "dist"))
    entry_points._offered.cache_clear()
    schemes: list[dict[str, Any]] = json.loads(own.call("list", "schemes", "--json").out)
    (layerwise,) = [row for row in schemes if row["name"] == "layerwise"]
    assert layerwise["help"] == "the teacher teaches the student stage by stage, then the whole of it"
    assert layerwise["from"] == "my_pkg.schemes:layerwise"
    assert [(o["name"], o["type"], o["default"]) for o in layerwise["options"]] == [
        ("options.stage_epochs", "integer", 2),
        ("options.weight", "number", 1000.0),
    ]
    knowledge = own.call("list", "knowledge").out
    assert "cosine" in knowledge and "margin: number (default 0.0)" in knowledge
    (own.folder / "my_pkg" / "losses.py").write_text("import nothing_there\n")
    for name in [name for name in sys.modules if name.startswith("my_pkg")]:
        del sys.modules[name]
    assert "does not work: the module my_pkg.losses does not import" in own.call("list", "knowledge").out


SCHEME, COSINE = "my_pkg.schemes:layerwise", "my_pkg.losses:cosine"
MISTAKES: dict[str, tuple[str, str, str, str, str]] = {
    "unknown option": (
        "p.yaml",
        "stage_epochs",
        "stage_epoch",
        r"p.yaml:8:17: unknown key 'stage_epoch'",
        "stage_epochs",
    ),
    "wrong type": ("p.yaml", "stage_epochs: 3", "stage_epochs: few", r"stage_epochs: .few. is not allowed", "whole"),
    "missing option": (
        "my_pkg/schemes.py",
        "weight: float = 1000.0",
        "weight: float",
        r"options.weight is missing",
        "add",
    ),
    "no such function": ("p.yaml", ":layerwise", ":layerwize", r"p.yaml:7:7: .*no 'layerwize'", "'layerwise'"),
    "no such module": (
        "p.yaml",
        "my_pkg.schemes",
        "my_pkg.scheme",
        r"p.yaml:7:7: .*no module 'my_pkg.scheme'",
        "schemes",
    ),
    "import fails": (
        "my_pkg/schemes.py",
        "import Cast",
        "import Cost",
        r"my_pkg.schemes does not import: my_pkg",
        "python",
    ),
    "unknown setting": ("p.yaml", "margin", "margn", r"p.yaml:14:47: unknown key 'margn'", "'margin'"),
    "wrong setting": ("p.yaml", "margin: 0.1", "margin: big", r"margin: .big. is not allowed here", "number"),
    "wrong weight": ("p.yaml", "weight: 0.5", "weight: -1", r"p.yaml:14.*-1 is not allowed here", "at least 0"),
    "no such loss": ("p.yaml", "losses:cosine", "losses:cosin", r"p.yaml:14.*no 'cosin'", "'cosine'"),
    "not a function": (
        "my_pkg/losses.py",
        "def cosine(",
        "cosine = 3\ndef sine(",
        r"type int, which cannot",
        "define a",
    ),
    "unknown layer": ("p.yaml", "layers: auto", "layers: [body, head]", r"p.yaml:6.* has no module 'body'", "near"),
    "options of no scheme": ("p.yaml", SCHEME, "offline", r"options does nothing in scheme offline", "of your own"),
    "unreadable annotation": (
        "my_pkg/schemes.py",
        "weight: float = 1000.0",
        "weight: 'Weigth' = 1.0",
        r"p.yaml:7.*read",
        "annotate",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_code_of_ones_own_are_one_line_before_anything_runs(name: str, own: Place) -> None:
    file, old, new, error, hint = MISTAKES[name]
    rewritten(own, file, old, new)
    said = own.run(None, "--to", "distill")
    said.is_one_mistake(2, error, hint)
    assert not list((own.folder / "store").glob("**/*.safetensors"))


def test_tables_that_a_scheme_states_are_those_its_options_name(own: Place) -> None:
    rewritten(own, "my_pkg/schemes.py", "weight: float = 1000.0", "also: str = 'unlabelled', weight: float = 1.0")
    rewritten(own, "my_pkg/schemes.py", "task_weight=0.1", "task_weight=0.1, tables=('also',)")
    rewritten(own, "p.yaml", "data: {digits: {}", "data: {labelled: 50, digits: {}")
    from edgekd.pipeline.schema import load_pipeline

    options = load_pipeline(own.folder / "p.yaml").stages[-1].settings
    assert options.tables_used == ("unlabelled",)  # type: ignore[attr-defined]
    rewritten(own, "p.yaml", "stage_epochs: 3", "also: train")
    options = load_pipeline(own.folder / "p.yaml").stages[-1].settings
    assert options.tables_used == ()  # type: ignore[attr-defined]
