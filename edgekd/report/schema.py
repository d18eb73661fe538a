"""The typed report, schema version 1: what report.json holds, field by field.

Paths are relative to the run's folder. A number that could not be measured is null, never 0.
Run `python -m edgekd.report.schema` to write `report.schema.json` anew after a change here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from edgekd.config.docstrings import docstrings
from edgekd.report import measured
from edgekd.report.values import Interval, Measured, Part, RelativePath, Text

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
Latency = measured.Latency
Comparison = measured.Comparison
Throughput = measured.Throughput
Load = measured.Load


class Metric(Part):
    """One number on one split of the data, with its sample size and spread."""

    name: str
    """What was measured, in the field's own word: accuracy, mean_absolute_error, .."""
    value: float
    """The value, in `unit`."""
    unit: str | None = None
    """Unit of the value; null for a plain fraction or count."""
    split: str | None = None
    """The split it was measured on: train, validation or test."""
    n: int | None = None
    """Number of samples behind the value."""
    ci95: Interval = None
    """95% interval of the value, lower end first."""


class ErrorInfo(Part):
    """Why the run did not end well."""

    message: Text
    """What is wrong, in one line."""
    hint: Text | None = None
    """How to mend it, in one line."""
    stage: str | None = None
    """Name of the stage that failed; null when none had begun."""
    log: RelativePath | None = None
    """The log file that holds the traceback."""


class Git(Part):
    """State of the repository that holds the pipeline file."""

    commit: str
    """Hash of the commit that was checked out."""
    dirty: bool
    """True when tracked files differed from that commit."""


class Environment(Part):
    """The machine and the software that the run used."""

    host: str | None = None
    """Name of the machine."""
    cpu: str | None = None
    """Model name of the processor."""
    cores: int | None = None
    """Number of logical cores that the run may use."""
    memory_bytes: int | None = None
    """Main memory in bytes."""
    gpu: str | None = None
    """Model name of the accelerator; null when there is none."""
    os: str | None = None
    """Operating system and its release."""
    python: str | None = None
    """Version of Python."""
    packages: dict[str, str] = Field({})
    """Version of every library that matters, by name."""


class SplitSizes(Part):
    """Number of samples in each split; null for a split that does not exist."""

    train: int | None = None
    """Samples that the networks learn from."""
    validation: int | None = None
    """Samples that choices are made on."""
    test: int | None = None
    """Samples that only `evaluate` reads."""


class Data(Part):
    """The data that the run read."""

    fingerprint: str
    """Digest over the content of the data."""
    split_fingerprints: dict[str, str] = Field(default_factory=dict)
    """The same of what decides the samples of each split alone: scores on a split whose digest is the same compare."""
    licence: str | None = None
    """Licence of the data, where its source names one."""
    n: SplitSizes = SplitSizes()
    """Number of samples in each split."""
    broken_images: dict[str, int] = Field(default_factory=dict)
    """Images of each split of the source that were broken and left out."""


class Stage(Part):
    """One stage of the chain and what became of it."""

    name: str
    """Name of the stage in the pipeline file."""
    state: Literal["ran", "cached", "resumed", "skipped", "failed"]
    """What became of it."""
    cache: Literal["local", "remote", "miss"] | None = None
    """Where its artefact was found; null when nobody looked."""
    key: str | None = None
    """Digest of everything that could change its result; null when it was never known."""
    seconds: float = 0.0
    """Wall time that this run spent on it, in seconds."""
    why: Text | None = None
    """Why it ran, was skipped, or failed."""
    warnings: tuple[Text, ...] = ()
    """What was found while it was built that a user should look at."""


class Model(Part):
    """One network that the chain trained or was given."""

    role: str
    """Its part in the chain: teacher, student, quantized, .."""
    name: str
    """Its name in the zoo, or `package.module:factory`."""
    parameters: int | None = None
    """Number of parameters."""
    macs: int | None = None
    """Multiply-accumulate operations for one sample."""
    size_bytes: int | None = None
    """Size of its weights in bytes."""
    metrics: tuple[Metric, ...] = ()
    """Its numbers in PyTorch, before any engine."""


class Tensor(Part):
    """One named input or output of a build."""

    name: str
    """Its name in the graph."""
    dtype: str
    """Its numpy type name."""
    shape: tuple[int, ...]
    """Its shape; -1 stands for the batch axis."""


class Parity(Part):
    """How far a build agrees with a reference on real data."""

    reference: str
    """What it was held against."""
    n: int
    """Number of samples that were compared."""
    max_abs_error: Measured = None
    """Largest absolute difference of any output; null when it was not finite."""
    agreement: dict[str, float] = Field({})
    """Share of samples on which both give the same answer, by name of the measure."""


class KeptFloat(Part):
    """A node that computes in float32 in a graph of half precision."""

    node: str
    """Its name in the ONNX graph."""
    why: Text
    """What does not fit half precision there."""


class Build(Part):
    """One model in the form that one engine loads."""

    target: str
    """Name of the target in the pipeline file."""
    runtime: str
    """The inference engine."""
    device: str
    """The device, in the engine's words."""
    precision: str
    """The precision that was asked for; `executed_precision` says what the engine did."""
    model: str
    """Role of the model that was built."""
    path: RelativePath | None = None
    """The file or folder to load; null when there is none."""
    sha256: str | None = None
    """Digest of the file to load."""
    size_bytes: int | None = None
    """Size on disk in bytes."""
    seconds: float | None = None
    """Time that compiling took, in seconds."""
    inputs: tuple[Tensor, ...] = ()
    """Its inputs."""
    outputs: tuple[Tensor, ...] = ()
    """Its outputs."""
    opset: int | None = None
    """ONNX operator set of the graph that was compiled."""
    onnx: RelativePath | None = None
    """The ONNX file that it was compiled from; null when it is not known."""
    built_on: str | None = None
    """Fingerprint of the machine that compiled it."""
    host: str | None = None
    """The device that it is for, as the pipeline file names it; null is the machine of `environment`."""
    chosen: bool = False
    """True for the build to use on this target."""
    rejected_because: Text | None = None
    """Why it is not the build to use; null for the chosen one."""
    metrics: tuple[Metric, ...] = ()
    """Its numbers, measured on its target with its engine."""
    difference: Metric | None = None
    """Its metric less that of the teacher (else of the float network) on the same samples, in pairs."""
    parity: Parity | None = None
    """Agreement with a reference; null when it was not checked."""
    executed_precision: dict[str, int] = Field({})
    """Number of layers that the engine runs in each precision."""
    executed_convolutions: dict[str, int] = Field({})
    """Of these the convolutions; with 8 bits everywhere, int8 is the only key."""
    kept_float: tuple[KeptFloat, ...] = ()
    """Nodes of a half precision graph that stay in float32."""


class Gate(Part):
    """One budget, and whether it held."""

    measure: str
    """What is limited."""
    of: str
    """What it is measured on: a model's role or a build."""
    against: str | None = None
    """What it is held against, for a drop or a ratio."""
    target: str | None = None
    """Name of the target."""
    limit: float
    """The limit, in `unit`."""
    unit: str | None = None
    """Unit of limit, value and interval; null for a plain number."""
    value: Measured = None
    """What was measured; null when nothing was."""
    ci95: Interval = None
    """95% interval of the value."""
    no_interval: Text | None = None
    """Why there is no interval: what was measured is exact, or was measured once; null where there is one."""
    verdict: Literal["passed", "failed", "undecided"]
    """Undecided when the interval lies on both sides of the limit, or nothing was measured."""
    broken: bool = False
    """Whether it ends the run with exit code 5: not where it only chooses the float build, or may be undecided."""
    label: str | None = None
    """The budget in words, for example `p50 of quantized on ov: at most 2 ms`."""
    message: Text | None = None
    """What there is to say about the verdict."""


class Detail(Part):
    """A file with more than fits into the report."""

    kind: str
    """What it holds: loss_curves, sensitivity, ladder, arms, layers, sustain, .."""
    path: RelativePath
    """Where it lies."""


class Timing(Part):
    """What a run spent its time on, in seconds of wall time."""

    import_s: float = 0.0
    """Loading torch, the engines and the code of stages, before the stages work; what they load while they work is
    theirs."""
    train_s: float = 0.0
    """Training: the work of the stages model, teacher, distill and quantize."""
    export_s: float = 0.0
    """The work of the stage export."""
    compile_s: float = 0.0
    """The work of the stage compile."""
    measure_s: float = 0.0
    """The work of the stages evaluate and bench."""
    own_s: float = 0.0
    """The rest until the report was drawn: checks, keys, the store, files."""
    own_cpu_s: float = 0.0
    """CPU time of this process in `own_s`: less than that where others keep the machine busy."""


class Report(Part):
    """One run of a pipeline: what was built, how good and how fast it is, and which budgets held."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    edgekd_version: str
    """Version of edgekd that ran."""
    run_id: str
    """Name of this run, unlike any other."""
    pipeline: str
    """Name of the pipeline."""
    status: Literal["ok", "failed", "gate_failed"]
    """How the run ended."""
    exit_code: int
    """Exit code of the command."""
    error: ErrorInfo | None = None
    """Why it did not end well; null when it did."""
    created: AwareDatetime
    """When the run began, with its time zone."""
    seconds: float
    """Wall time of the run, in seconds."""
    timing: Timing = Timing()
    """What it was spent on."""
    seed: int | None = None
    """The seed that all randomness comes from."""
    git: Git | None = None
    """State of the repository; null outside of one."""
    environment: Environment = Environment()
    """The machine and the software."""
    data: Data | None = None
    """The data; null when it was never opened."""
    stages: tuple[Stage, ...] = ()
    """Every stage, in order."""
    models: tuple[Model, ...] = ()
    """Every network."""
    builds: tuple[Build, ...] = ()
    """Every build on every target."""
    latency: tuple[Latency, ...] = ()
    """Every latency measurement."""
    comparisons: tuple[Comparison, ...] = ()
    """Every interleaved comparison."""
    throughput: tuple[Throughput, ...] = ()
    """Every closed loop of several calls at once."""
    load: tuple[Load, ...] = ()
    """Every open loop of requests that arrive by chance."""
    gates: tuple[Gate, ...] = ()
    """Every budget."""
    details: tuple[Detail, ...] = ()
    """Files with more."""


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a written report: every field is present in it, those without a value as null."""
    schema = Report.model_json_schema(mode="serialization")
    parts = {part.__name__: part for part in _below(Part)}
    for name, shape in [("Report", schema), *schema["$defs"].items()]:
        for field, text in docstrings(parts[name]).items():
            shape["properties"][field] = dict(sorted({"description": text, **shape["properties"][field]}.items()))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _below(cls: type[Part]) -> Iterator[type[Part]]:
    for part in cls.__subclasses__():
        yield part
        yield from _below(part)


def schema_text() -> str:
    """Content of `report.schema.json`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
