"""The workflows of docs/ci.md: the files in examples/ci are well formed, and the page shows them as they are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_readme import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "ci"
PAGE = (ROOT / "docs" / "ci.md").read_text()
STEP_KEYS = {"name", "id", "if", "uses", "run", "with", "env", "shell", "working-directory", "timeout-minutes"}
JOB_KEYS = {"runs-on", "timeout-minutes", "steps", "needs", "if", "env", "permissions", "strategy", "services"}
GITLAB_KEYS = {"stage", "image", "tags", "timeout", "variables", "cache", "script", "artifacts", "rules", "needs"}


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(FOLDER / name)


def scripts(name: str) -> list[str]:
    content = load(name)
    if name.startswith("github"):
        return [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    return list(content["model"]["script"])


def test_the_page_shows_the_files_as_they_are() -> None:
    shown = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.M | re.S)
    assert shown == [(FOLDER / name).read_text() for name in ("github-actions.yml", "gitlab-ci.yml")]


def test_github_workflow_is_well_formed() -> None:
    content = load("github-actions.yml")
    assert set(content) == {"name", "on", "permissions", "defaults", "jobs"}
    assert set(content["on"]) == {"push", "pull_request"}
    for job in content["jobs"].values():
        assert set(job) <= JOB_KEYS and {"runs-on", "steps"} <= set(job)
        for step in job["steps"]:
            assert set(step) <= STEP_KEYS
            assert ("uses" in step) != ("run" in step), step
            assert "with" not in step or "uses" in step
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@v\d+", step.get("uses", "a/b@v1"))
    text = (FOLDER / "github-actions.yml").read_text()
    for expression in re.findall(r"\$\{\{(.*?)\}\}", text):
        assert expression.count("(") == expression.count(")") and expression.count("'") % 2 == 0
    assert text.count("${{") == text.count("}}")


def test_gitlab_pipeline_is_well_formed() -> None:
    content = load("gitlab-ci.yml")
    assert set(content) == {"workflow", "stages", "model"}
    job = content["model"]
    assert set(job) <= GITLAB_KEYS and job["stage"] in content["stages"]
    assert all(isinstance(line, str) for line in job["script"])
    assert job["artifacts"]["reports"]["junit"].endswith("/junit.xml") and job["artifacts"]["when"] == "always"
    policies = {rule["variables"]["BASE_POLICY"] for rule in content["workflow"]["rules"]}
    assert policies == {"pull", "push"} and job["cache"][1]["policy"] == "$BASE_POLICY"


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_their_scripts_are_shell_and_call_commands_that_exist(name: str) -> None:
    found = scripts(name)
    for script in found:
        checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    calls = [call for script in found for call in re.findall(r"\bedgekd ([a-z].*?)(?= \||;|$)", script, flags=re.M)]
    assert {call.split()[0] for call in calls} == {"run", "compare"}
    for call in calls:
        parse(call.split())


def test_commands_of_the_page_are_understood() -> None:
    calls = re.findall(r"^    edgekd (.*)$", PAGE, flags=re.M)
    assert len(calls) >= 4
    for call in calls:
        parse(call.split())
