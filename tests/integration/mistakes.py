"""What the tests of mistakes share: a small pipeline file to break, a place to run it in, and what a command said."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.main import run as edgekd

MICRO = """\
name: micro
data:
  digits: {}
  limit: {train: 64, validation: 32, test: 32}
train: {batch: 32, precision: f32}
stages:
  - teacher: {model: convnet, args: {width: 4, depth: 3}, epochs: 1}
  - quantize: {}
  - export: {}
  - compile: {}
  - evaluate: {}
targets:
  ort: {runtime: onnxruntime}
"""
FILE = f"""\
{MICRO}gates:
  - {{measure: metric_drop, of: quantized, against: teacher, max: "50 pt"}}
"""
TEACHER = "  - teacher: {model: convnet, args: {width: 4, depth: 3}, epochs: 1}\n"


@dataclass
class Said:
    """What a command left: its exit code, and its lines on standard error and output."""

    code: int
    err: str
    out: str

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def help(self) -> list[str]:
        return [line.removeprefix("help: ") for line in self.err.splitlines() if line.startswith("help: ")]

    def is_one_mistake(self, code: int, error: str, hint: str) -> None:
        """One `error:` line that matches, then one `help:` line that matches, and nothing like a traceback."""
        assert "Traceback" not in self.err + self.out
        assert (self.code, len(self.errors), len(self.help)) == (code, 1, 1), self.err
        assert re.search(error, self.errors[0]), self.errors[0]
        assert re.search(hint, self.help[0]), self.help[0]
        lines = self.err.splitlines()
        assert lines.index(f"help: {self.help[0]}") == lines.index(f"error: {self.errors[0]}") + 1


@dataclass
class Place:
    """A folder to make mistakes in."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def write(self, text: str | bytes, name: str = "p.yaml") -> None:
        content = text.encode() if isinstance(text, str) else text
        (self.folder / name).write_bytes(content)

    def call(self, *words: str) -> Said:
        """The command line in this process."""
        self.capture.readouterr()
        with pytest.raises(SystemExit) as end:
            edgekd(words)
        said = self.capture.readouterr()
        assert isinstance(end.value.code, int)
        return Said(end.value.code, said.err, said.out)

    def run(self, text: str | bytes | None = None, *words: str) -> Said:
        if text is not None:
            self.write(text)
        return self.call("run", "p.yaml", "--out", "out", "--store", "store", *words)

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "out/report.json").read_text())
        return report

    def states(self) -> dict[str, str]:
        return {stage["name"]: stage["state"] for stage in self.report()["stages"]}


def edited(*pairs: tuple[str, str]) -> str:
    text = FILE
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text
