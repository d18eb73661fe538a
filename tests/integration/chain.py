"""Runs the command line in a test: in this process, or in one of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked import edgekd

MICRO = """
name: micro
data: {digits: {}, limit: {train: 320}}
train: {batch: 32}
stages:
  - teacher: {model: convnet, args: {width: 16}, epochs: 4}
  - distill: {student: convnet, args: {width: 8}, epochs: 4}
  - quantize: {self_distillation: true, epochs: 1}
  - export: {min_agreement: 0.9}
  - compile: {}
  - evaluate: {}
  - bench: {quick: true, launches: 1, min_time_s: 0.2, min_samples: 20, quiet_wait_s: 0}
targets:
  ov: {runtime: openvino}
  ort: {runtime: onnxruntime}
gates:
  - {measure: metric_drop, of: quantized, against: student, max: "50 pt"}
"""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str
    report: dict[str, Any]

    def states(self) -> dict[str, str]:
        """State of each stage by name."""
        return {stage["name"]: stage["state"] for stage in self.report["stages"]}


@dataclass(frozen=True)
class Workshop:
    """A folder with a pipeline file, a store and the folder of its runs."""

    folder: Path

    @property
    def file(self) -> Path:
        """The pipeline file."""
        return self.folder / "pipeline.yaml"

    @property
    def out(self) -> Path:
        """Where runs leave their report."""
        return self.folder / "out"

    def write(self, text: str) -> None:
        """Write the pipeline file."""
        self.file.write_text(text)

    def command(self, *arguments: str) -> list[str]:
        """The run command with this workshop's folders, in a Python of its own."""
        return [sys.executable, "-m", "edgekd", *self.words(*arguments)]

    def words(self, *arguments: str) -> list[str]:
        """What stands behind `edgekd` in the run command."""
        return ["run", str(self.file), "--out", str(self.out), "--store", str(self.folder / "store"), *arguments]

    def run(self, *arguments: str) -> Result:
        """Run the pipeline in a process of its own, as a user does."""
        done = edgekd(self.words(*arguments))
        path = self.out / "report.json"
        report = json.loads(path.read_text()) if path.is_file() else {}
        return Result(done.returncode, done.stdout, done.stderr, report)
