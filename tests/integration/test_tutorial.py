"""The newcomer's session of docs/tutorial.md: every command of it, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from forked import edgekd

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", TUTORIAL, flags=re.M | re.S) for line in block.splitlines()
]


def shell(folder: Path) -> dict[str, str]:
    """An environment in which `edgekd` and `python` are those of this test."""
    tools = folder / "bin"
    tools.mkdir()
    for name, words in (("edgekd", "-m edgekd"), ("python", "")):
        script = tools / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    known = {key: value for key, value in os.environ.items() if not key.startswith("EDGEKD_")}
    return {**known, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_tutorial_has_every_command_of_the_way() -> None:
    named = [line.split()[1] for line in COMMANDS if line.startswith("edgekd ")]
    assert named[:4] == ["new", "check", "run", "compress"]
    assert {"predict", "evaluate", "bundle", "plan"} <= set(named)


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs_in_order(tmp_path: Path) -> None:
    environment = shell(tmp_path)
    place, said = tmp_path, {}
    for line in COMMANDS:
        if line.startswith("cd "):
            place = place / line.removeprefix("cd ")
            continue
        words = shlex.split(line)
        if words[0] == "edgekd" and not {"|", "&&", ";", ">"} & set(words):
            done = edgekd(words[1:], cwd=place, env=environment)
        else:
            command = ["bash", "-c", line]
            done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        said[line.split()[1]] = done.stdout
    assert re.search(r"^onnxruntime: (INT8|FP32) kept", said["compress"], flags=re.M)
    assert "quantized    yes" in said["check"]
    assert re.search(
        r"^accuracy 0\.\d{4} \[0\.\d{4}, [01]\.\d{4}\], n 400 \(test of images\)$", said["evaluate"], flags=re.M
    )
    states = [line.split()[1] for line in said["plan"].splitlines()]
    assert set(states) == {"cached"}
    assert (place / "shop.tar.gz").is_file()
    shown = next(text for name, text in said.items() if name.endswith("predict.py"))
    assert shown.split()[1] == "output" or len(shown.split()) >= 10
    # The script beside the build and the command say the same of the same image.
    assert shown.split()[2:4] == said["predict"].split()[1:3]
