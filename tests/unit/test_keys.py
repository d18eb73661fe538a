"""Keys of stages: they hold everything that a stage's code imports, and nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import edgekd
from edgekd.pipeline.keys import changes, explain
from edgekd.stages.kinds import KINDS

ROOT = Path(edgekd.__file__).parent
# Plain data and plumbing: options enter a key by their values, errors and files change no result.
NEUTRAL = {"errors", "files", "config", "store"}
ALWAYS = {"settings", "context"}


def imported(path: Path) -> set[str]:
    """Modules of edgekd that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekd."):
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("name", list(KINDS))
def test_a_stages_key_covers_every_room_and_file_that_its_code_imports(name: str) -> None:
    kind = KINDS[name]
    files = {kind.function.partition(":")[0].rsplit(".", 1)[-1], *kind.shares}
    rooms, stage_files = set(), set()
    for file in files:
        for module in imported(ROOT / "stages" / f"{file}.py"):
            _, room, *rest = module.split(".")
            if room == "stages":
                stage_files |= set(rest) - ALWAYS
            elif rest != ["settings"]:
                rooms.add(room)
    assert rooms - NEUTRAL <= set(kind.rooms)
    assert stage_files <= files


def test_rooms_below_a_stages_rooms_are_covered_too() -> None:
    for kind in KINDS.values():
        needed = set()
        for room in kind.rooms:
            for path in (ROOT / room).rglob("*.py"):
                needed |= {m.split(".")[1] for m in imported(path) if not m.endswith(".settings")}
        assert needed - NEUTRAL - {"report", "pipeline", "cli"} <= set(kind.rooms), kind.name


def test_changes_are_told_as_old_and_new() -> None:
    before = {"settings": {"epochs": 5, "lr": None}, "data": "a" * 64}
    after = {"settings": {"epochs": 6, "lr": None}, "data": "b" * 64}
    assert changes(before, after) == ["data aaaaaaaaaaaa.. -> bbbbbbbbbbbb..", "settings.epochs 5 -> 6"]
    weights = [{"knowledge": [{"kd": {"weight": w}}, {"hint": {"ramp": 0}}]} for w in (0.9, 1.0)]
    assert changes(*weights) == ["knowledge.0.kd.weight 0.9 -> 1.0"]
    assert changes({"a": [1, 2]}, {"a": [1]}) == ["a [1, 2] -> [1]"]
    assert explain(None, after) == "never ran before"
    assert explain(after, after) == "its artefact is gone from the store"
    assert explain(before, after).startswith("changed: data")
