"""What the README and the files beside it promise is there: pipelines, commands, exit codes, one version, pins."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import edgekd
from edgekd.cli.main import app
from edgekd.errors import EdgekdError
from edgekd.pipeline.schema import load_pipeline

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.M | re.S)
YAML = [text for language, text in BLOCKS if language == "yaml" and text.startswith("name:")]
PARTS = [text for language, text in BLOCKS if language == "yaml" and not text.startswith("name:")]
SHELL = [line.removeprefix("$ ") for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
INLINE = re.findall(r"`(edgekd [^`]+)`", README)
COMMANDS = sorted({line for line in SHELL + INLINE if line.startswith("edgekd ")})
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def without_comments(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.fixture
def beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like pipelines/: ../examples lies where pipeline files look for it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "pipelines").mkdir()
    return tmp_path / "pipelines"


@pytest.mark.parametrize("text", YAML)
def test_pipelines_in_the_readme_are_valid(text: str, beside_the_examples: Path) -> None:
    file = beside_the_examples / "readme.yaml"
    file.write_text(text)
    assert load_pipeline(file).stages


def test_pipelines_in_the_readme_are_the_files_that_it_names() -> None:
    for text in YAML:
        name = re.search(r"^name: (\w+)$", text, flags=re.M)
        assert name
        file = ROOT / "pipelines" / f"{name[1]}.yaml"
        assert f"`pipelines/{file.name}`" in README
        assert without_comments(text) == without_comments(file.read_text())
        assert len(without_comments(text)) < 30


@pytest.mark.parametrize("text", PARTS)
def test_parts_of_pipelines_in_the_readme_are_valid(text: str, beside_the_examples: Path) -> None:
    """A block such as `data:` stands for itself; with a name and a stage it is a pipeline file."""
    file = beside_the_examples / "readme.yaml"
    teacher = "{teacher: {model: resnet8}}"
    lone = text.replace("stages:\n", f"stages:\n  - {teacher}\n") if "stages:" in text else f"{text}stages: [{teacher}]"
    file.write_text(f"name: part\ndata: {{digits: {{}}}}\n{lone}\n" if "data:" not in text else f"name: part\n{lone}\n")
    assert load_pipeline(file).stages


def parse(words: list[str]) -> None:
    """Parse a command line as edgekd does, without doing what it says."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    if words not in (["--help"], ["--version"]):
        with command.make_context("edgekd", [*words]):
            pass


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_in_the_readme_are_understood(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    for choice in words[1].split("|") if "|" in line else [None]:
        parse(words if choice is None else [words[0], choice, *words[2:]])


def test_commands_in_the_readme_show_their_help() -> None:
    names = {line.split()[1] for line in COMMANDS} - {"--help"}
    assert {"run", "plan", "list", "doctor", "measure", "store"} <= names
    for name in sorted(names):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {line.split()[1] for line in SHELL if line.startswith("make ")}
    assert targets >= {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M)


def test_ci_runs_the_command_of_the_readme() -> None:
    lines = without_comments((ROOT / ".ci" / "run").read_text())
    assert [line for line in lines if line.startswith("make")] == ["make test"]
    assert not any("pip" in line for line in lines)


def test_files_that_the_readme_names_exist() -> None:
    named = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:pipelines|edgekd|docs)/[\w./]+)`", README)
    assert named
    for path in named:
        assert (ROOT / path).is_file(), path


def test_every_exit_code_is_explained() -> None:
    def below(kind: type[EdgekdError]) -> set[int]:
        return {kind.exit_code}.union(*(below(child) for child in kind.__subclasses__()))

    table = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.M)}
    assert table == below(EdgekdError) | {0, 130, 143}


def test_the_version_stands_in_one_place() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "edgekd/__init__.py"
    assert CliRunner().invoke(app, ["--version"]).output.strip() == edgekd.__version__
    assert edgekd.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_everything_that_is_installed_is_pinned_and_within_bounds() -> None:
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pins = dict(line.split("==") for line in without_comments((ROOT / "constraints.txt").read_text()))
    assert not any("+" in version or "/" in version for version in pins.values())
    extras = PYPROJECT["project"]["optional-dependencies"]
    asked = [*PYPROJECT["project"]["dependencies"], *extras["test"], *extras["dev"], *extras["tensorrt-rtx"]]
    for requirement in asked:
        if requirement.startswith("edgekd["):
            continue
        name, _, bound = requirement.partition(">=")
        pinned, lowest = (tuple(map(int, v.split("."))) for v in (pins[normal(name)], bound))
        assert pinned >= lowest, requirement
