"""Reading pipeline files: positions, plain data alone, strict settings, and nothing but our own errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.bench.settings import BenchSettings
from edgekd.config import Settings, describe, load_tree, parse_tree, raise_problems, validate
from edgekd.config.settings import did_you_mean
from edgekd.data import DataSettings
from edgekd.distill.settings import KdSettings, MseLogitsSettings
from edgekd.errors import ConfigError
from edgekd.pipeline.gates import GateSettings
from edgekd.pipeline.overrides import SOURCES, apply_override
from edgekd.pipeline.schema import PipelineSettings
from edgekd.stages.kinds import KINDS, WRITABLE
from edgekd.stages.settings import TargetSettings
from edgekd.train.settings import TrainSettings

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *PipelineSettings.model_fields,
        *TrainSettings.model_fields,
        *GateSettings.model_fields,
        *DataSettings.model_fields,
    ]
)
NEAR = st.dictionaries(KEYS, st.recursive(PLAIN, lambda inner: st.dictionaries(KEYS, inner, max_size=4)), max_size=6)
CLASSES = [PipelineSettings, *(kind.settings for kind in KINDS.values()), GateSettings, TargetSettings]
YAML_WORDS = st.sampled_from(
    [*"{}[],:-?&*!|>'\"%@`#\n \t", "a", "1", "0x", ".inf", "!!int ", "&a ", "*a", "<<", "---\n"]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text() | st.lists(YAML_WORDS, max_size=30).map("".join))
def test_no_text_makes_the_reader_raise_anything_but_our_error(text: str) -> None:
    refused = None
    try:
        value = parse_tree(text, "p.yaml").value
    except ConfigError as error:
        refused = error
    if refused is None:
        assert value is None or isinstance(value, (dict, list, str, int, float, bool))
    else:
        assert refused.message.startswith("p.yaml")
        assert refused.hint
        assert len((refused.message + refused.hint).split("\n")) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CLASSES), PLAIN | NEAR)
def test_no_plain_value_makes_validation_raise(cls: type[Settings], value: Any) -> None:
    made, problems = validate(cls, value)
    assert (made is None) == bool(problems)
    assert all(problem.message and problem.hint for problem in problems)


def test_positions_are_those_of_keys_and_items() -> None:
    tree = parse_tree("a: 1\nb:\n  - x\n  - c: 2\n", "p.yaml")
    assert tree.value == {"a": 1, "b": ["x", {"c": 2}]}
    assert [tree.where(place) for place in (("a",), ("b", 0), ("b", 1, "c"))] == [
        "p.yaml:1:1", "p.yaml:3:5", "p.yaml:4:5",
    ]  # fmt: skip


def test_a_place_that_is_not_in_the_file_is_that_of_what_is_around_it() -> None:
    tree = parse_tree("a:\n  b: 1\n", "p.yaml")
    assert tree.where(("a", "missing")) == "p.yaml:1:1"
    assert tree.where(("missing",)) == "p.yaml:1:1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("true", True), ("0x10", 16), ("1e3", 1000.0), ("1_000", 1000),
        ("~", None), ("2001-01-01", "2001-01-01"), ("'3'", "3"), ("0o17", 15), ("-7", -7),
    ],
)  # fmt: skip
def test_plain_words_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    assert parse_tree(text, "p").value == value


@pytest.mark.parametrize(
    "text", ["!!python/name:os.system", "!!binary aGk=", "!mine 3", "!!set {a}", "[1]: 2", "<<: 3"]
)
def test_what_is_more_than_plain_data_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^p:1:\d+: "):
        parse_tree(text, "p")


def test_a_file_that_is_no_page_of_yaml_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("# " + "x" * 1_000_001)
    with pytest.raises(ConfigError, match="larger than 1000000 bytes"):
        load_tree(path)


def test_problems_come_once_each_in_the_order_of_the_file() -> None:
    tree = parse_tree("a: 1\nb: 2\n", "p")
    _, problems = validate(TrainSettings, {"b": 1, "a": 2})
    with pytest.raises(ConfigError) as caught:
        raise_problems(tree, [*problems, *problems])
    assert [message for message, _ in caught.value.problems] == [
        "p:1:1: unknown key 'a' in the file", "p:2:1: unknown key 'b' in the file",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("address", "value"),
    [
        ("train.batch=3", {"train": {"batch": 3}}),
        ("teacher.epochs=2", {"stages": [{"teacher": {"epochs": 2}}, "export"]}),
        ("export.opset=18", {"stages": [{"teacher": None}, {"export": {"opset": 18}}]}),
        ("teacher.args.width=2", {"stages": [{"teacher": {"args": {"width": 2}}}, "export"]}),
        ("gates.0.max=2 ms", {"gates": [{"max": "2 ms"}]}),
        ("data.path=a b", {"data": {"npz": {"path": "a b"}}}),
        ("data.npz.path=/x", {"data": {"npz": {"path": "/x"}}}),
        ("name=null", {"name": None}),
    ],
)
def test_set_changes_one_value(address: str, value: dict[str, Any]) -> None:
    text = "name: x\ndata: {npz: {path: y}}\nstages:\n  - teacher:\n  - export\ngates:\n  - {max: 1}\n"
    tree = parse_tree(text, "p")
    before = parse_tree(text, "p").value
    apply_override(tree, address, known=PipelineSettings.model_fields)
    expected = {**before, **value}
    changed = [key for key in tree.value if tree.value[key] != before.get(key)]
    assert tree.value == expected or tree.value["stages"] == expected["stages"]
    assert len(changed) <= 1


@pytest.mark.parametrize(
    ("data", "given"), [({"digits": {}}, "`digits`"), ({}, "none"), ({"npz": 1, "folder": 1}, "and")]
)
def test_set_of_the_data_path_needs_one_source_with_a_path(data: dict[str, Any], given: str) -> None:
    tree = parse_tree("", "p")
    tree.value = {"data": data}
    with pytest.raises(ConfigError, match=r"^--set data\.path: the data source has no one path") as caught:
        apply_override(tree, "data.path=x", known=PipelineSettings.model_fields)
    assert given in caught.value.message


def test_a_path_that_is_set_starts_where_the_command_runs_or_else_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    for text, expected in (("images", str(tmp_path / "images")), ("../images", "../images")):
        tree = parse_tree("data: {npz: {path: old}}", "p.yaml")
        apply_override(tree, f"data.path={text}", known=PipelineSettings.model_fields)
        assert tree.value["data"]["npz"]["path"] == expected


def test_data_path_knows_every_source() -> None:
    with pytest.raises(ValueError, match=", ".join(SOURCES)):
        DataSettings()


def test_did_you_mean_names_the_nearest_or_all() -> None:
    assert did_you_mean("bacth", ["batch", "lr"]) == "did you mean 'batch'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known are: a, b"


def _rows(rows: list[dict[str, Any]], path: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for row in rows:
        found.append((f"{path}.{row['name']}", row))
        for name, nested in row.get("fields", {}).items():
            found += _rows(nested, f"{path}.{row['name']}[{name}]")
    return found


@pytest.mark.parametrize(
    "cls",
    [*(KINDS[name].settings for name in WRITABLE), PipelineSettings, DataSettings, TrainSettings, TargetSettings,
     GateSettings, BenchSettings, KdSettings, MseLogitsSettings],
)  # fmt: skip
def test_every_option_is_typed_and_explained(cls: type[Settings]) -> None:
    rows = _rows(describe(cls), cls.__name__)
    assert [path for path, row in rows if not row["help"].strip()] == []
    assert [path for path, row in rows if not row["type"]] == []
    assert (cls.__doc__ or "").strip()
    assert all("default" in row or row["required"] for _, row in rows)
