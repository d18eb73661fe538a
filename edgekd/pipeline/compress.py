"""The pipeline file that `edgekd compress` runs: what was asked for, and everything else by rule (torch-free)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.config import parse_tree
from edgekd.config.settings import did_you_mean
from edgekd.config.tree import Location
from edgekd.data.sources import IMAGE_SOURCES
from edgekd.errors import ConfigError
from edgekd.files import canonical_json, from_here
from edgekd.models.names import elsewhere
from edgekd.pipeline.found_data import Found
from edgekd.pipeline.schema import Pipeline, check_tree
from edgekd.runtimes.registry import RUNTIMES

FILE, PREVIOUS = "pipeline.yaml", "pipeline.previous{}.yaml"  # the file in --out, and those that lay there before
MAX_DROP, MAX_DISAGREEMENT = "1 pt", "3 pt"  # what 8 bits may cost, with labels and without
_SAMPLES = 3_000_000  # that a student sees in all: 60 epochs of CIFAR-10
_EPOCHS = (20, 200)
_CALIBRATION = 256


@dataclass(frozen=True)
class Network:
    """A network as the command line names it; paths start in the current directory."""

    model: str
    args: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None


@dataclass(frozen=True)
class Wish:
    """What the command line asks for."""

    model: Network
    student: Network | None
    data: Found
    targets: Sequence[str]
    out: Path
    task: str = "classification"
    normalize: Any = None
    epochs: int | None = None
    max_drop: str | None = None
    seed: int = 0
    name: str | None = None
    saturates: bool = False
    fit: str | None = None


def pipeline_text(wish: Wish) -> str:
    """The file, with a comment at every value that a rule chose."""
    return (
        "\n".join([*_head(wish), *_data(wish), *_network(wish), *_stages(wish), *_targets(wish), *_gates(wish)]) + "\n"
    )


def check_text(wish: Wish, text: str) -> Pipeline:
    """The pipeline of a file's text, before it is written; errors name the options that it came from, not its lines.

    Raises:
        ConfigError: what was asked for makes no pipeline.
    """
    file = wish.out / FILE
    tree = parse_tree(text, str(file))
    tree.content = text.encode()
    tree.came_from(_origins(wish))
    return check_tree(file, tree)


def _origins(wish: Wish) -> dict[Location, str]:
    """The option that each part of the file came from; what a rule chose is the command's."""
    path = wish.data.options.get("path")
    data = from_here(Path(path)) if path else wish.data.source
    found: dict[Location, str] = {(): "compress", ("data",): f"--data {data}"}
    found |= {("data", name): f"--{name}" for name in ("size", "fit", "channels", "normalize")}
    found |= {(name,): f"--{name}" for name in ("name", "seed", "task", "args", "weights")}
    found |= {("model",): f"--model {wish.model.model}", ("gates",): "--max-drop" if wish.max_drop else "compress"}
    found |= {
        ("targets", name): f"--target {word}" for name, word in zip(targets_of(wish.targets), wish.targets, strict=True)
    }
    if wish.student is not None:
        place: Location = ("stages", 0, "distill")
        found |= {(*place, "student"): f"--student {wish.student.model}", (*place, "epochs"): "--epochs"}
        found |= {(*place, name): f"--student-{name}" for name in ("args", "weights")}
    return found


def targets_of(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Targets by name from `RUNTIME[:DEVICE][@HOST]`.

    Raises:
        ConfigError: an engine that there is not, or the same target twice.
    """
    found: dict[str, dict[str, str]] = {}
    for word in words:
        rest, _, host = word.partition("@")
        engine, _, device = rest.partition(":")
        if engine not in RUNTIMES:
            raise ConfigError(f"--target {word}: no engine is called {engine!r}", hint=did_you_mean(engine, RUNTIMES))
        if "@" in word and not host:
            raise ConfigError(f"--target {word}: names no device behind @", hint="write e.g. openvino@ssh://pi@host")
        name = re.sub(r"[^A-Za-z0-9]+", "_", "_".join(part for part in (engine, device, host) if part))[:32].strip("_")
        if name in found:
            raise ConfigError(f"--target {word}: is given twice", hint="give each target once")
        options = {"runtime": engine, "device": device, "host": host}
        found[name] = {key: value for key, value in options.items() if value}
    if not found:
        raise ConfigError("no --target is given", hint=f"give one or more of: {', '.join(RUNTIMES)}")
    return found


def epochs_for(samples: int) -> int:
    """Passes over so many training samples."""
    low, high = _EPOCHS
    return min(high, max(low, round(_SAMPLES / max(samples, 1))))


def _head(wish: Wish) -> list[str]:
    name = wish.name or re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(wish.model.model).name.partition(":")[0]).strip("_.-")
    return [
        "# Written by `edgekd compress`. Edit it and run it again: edgekd run THIS_FILE --out FOLDER",
        "# What did not change comes from the store. `edgekd list stages` (data, train, ..) shows every option.",
        f"name: {_value(name or 'compressed')}",
        f"seed: {wish.seed}",
        f"task: {wish.task}",
        f"python_path: [{_value(_from(wish.out, Path.cwd()))}]  # where the networks are imported from",
    ]


def _data(wish: Wish) -> list[str]:
    found = wish.data
    options = dict(found.options)
    if "path" in options:
        options["path"] = _from(wish.out, Path(options["path"]))
    lines = ["data:", f"  {found.source}: {_flow(options)}  # {found.words}"]
    if found.size is not None:
        lines.append(f"  size: {_value(list(found.size))}  # height, width")
    if wish.fit is not None:
        lines.append(f"  fit: {wish.fit}")
    if found.channels is not None:
        lines.append(f"  channels: {found.channels}")
    if wish.normalize is None:
        lines.append(
            "  normalize: auto  # mean and deviation of this data; give {mean: [..], std: [..]} of the training"
        )
    else:
        lines.append(f"  normalize: {_flow(wish.normalize)}")
    if wish.student is not None and (crop := _crop(found)):
        lines.append(
            f"  augment: {{crop: {crop}}}  # an eighth of a side; add flip: true where left and right do not matter"
        )
    return lines


def _crop(found: Found) -> int:
    return max(1, min(found.shape) // 8) if found.shape is not None and found.source in IMAGE_SOURCES else 0


def _network(wish: Wish) -> list[str]:
    lines = [f"model: {_value(reference_from(wish.out, wish.model.model))}"]
    if wish.model.args:
        lines.append(f"args: {_flow(wish.model.args)}")
    if wish.model.weights is not None:
        lines.append(f"weights: {_value(_from(wish.out, wish.model.weights))}")
    if wish.student is None:
        return lines
    return [*lines, f"train: {{batch: {_batch(wish.data.train)}}}"]


def _batch(samples: int) -> int:
    """128, and less where an epoch would have hardly any steps."""
    return min(128, max(16, 1 << (max(samples, 1) // 16).bit_length() - 1)) if samples >= 16 else 16


def _stages(wish: Wish) -> list[str]:
    lines = ["stages:"]
    if wish.student is not None:
        epochs = wish.epochs if wish.epochs is not None else epochs_for(wish.data.train)
        chosen = "asked for" if wish.epochs is not None else f"for {wish.data.train:,} training samples"
        options: dict[str, Any] = {"student": reference_from(wish.out, wish.student.model)}
        if wish.student.args:
            options["args"] = dict(wish.student.args)
        if wish.student.weights is not None:
            options["weights"] = _from(wish.out, wish.student.weights)
        knowledge, why = _knowledge(wish)
        options |= {"scheme": "offline", "knowledge": knowledge, "epochs": epochs}
        aware = max(1, epochs // 15)
        lines += [
            f"  # knowledge: {why}; epochs: {chosen}.",
            f"  - distill: {_flow(options)}",
            "  # The student's float self teaches the quantized one; no labels are needed.",
            *_processor(wish),
            f"  - quantize: {{{_quantization(wish)}, self_distillation: true, epochs: {aware}}}",
        ]
    else:
        lines += [
            "  # Calibration alone. To train it as well: self_distillation: true, epochs: 2",
            *_processor(wish),
            f"  - quantize: {{{_quantization(wish)}}}",
        ]
    return [*lines, "  - export: {}", "  - compile: {}", "  - evaluate: {}", "  - bench: {quick: true}"]


def _quantization(wish: Wish) -> str:
    """How much calibration looks at, and the bits of weights where 8 would saturate."""
    found = {"calibration": min(_CALIBRATION, max(wish.data.train, 1))}
    return _flow(found | ({"overflow_fix": "all"} if wish.saturates else {}))[1:-1]


def _processor(wish: Wish) -> list[str]:
    words = "  # overflow_fix: this processor has no VNNI, and its sums of 8-bit products overflow."
    return [words] if wish.saturates else []


def _knowledge(wish: Wish) -> tuple[list[Any], str]:
    """What is taught, by what the pair and the data allow, and why, in words."""
    if wish.task == "regression":
        return ["mse_logits"], "the teacher's values"
    if not wish.data.labelled:
        return [{"kd": {"temperature": 4, "weight": 1.0}}], "the teacher's answers alone, for there are no labels"
    if wish.data.classes is not None and wish.data.classes < 3:
        return [{"kd": {"temperature": 4, "weight": 0.9}}], "kd, for two classes have no relations for dist to teach"
    return ["dist"], "dist did best in docs/results.md, and works between any two networks of the same classes"


def _targets(wish: Wish) -> list[str]:
    lines = ["targets:"]
    for name, options in targets_of(wish.targets).items():
        precision = ["f16", "int8"] if options["runtime"].startswith("tensorrt") else ["f32", "int8"]
        lines.append(f"  {name}: {_flow({**options, 'precision': precision})}")
    return lines


def _gates(wish: Wish) -> list[str]:
    # Without labels the metric is agreement, which falls faster than accuracy: another answer need not be wrong.
    limit = wish.max_drop or (MAX_DROP if wish.data.labelled else MAX_DISAGREEMENT)
    gate = {"measure": "metric_drop", "of": "quantized", "against": "student"}
    taught = [
        "  # What the student may lose to its teacher: --max-drop was given, so more than that ends with 5.",
        *(
            f"  - {_flow({**gate, 'of': 'student', 'against': 'teacher', 'target': name, 'max': limit})}"
            for name in targets_of(wish.targets)
        ),
    ]
    return [
        "gates:  # where 8 bits cost more, the float build is chosen; without `otherwise` such a run ends with 5",
        *(
            f"  - {_flow({**gate, 'target': name, 'max': limit, 'otherwise': 'float'})}"
            for name in targets_of(wish.targets)
        ),
        *(taught if wish.student is not None and wish.max_drop is not None else ()),
    ]


def reference_from(out: Path, reference: str) -> str:
    """A network's reference as it stands in a file of the folder `out`: paths in it start there."""
    kind = elsewhere(reference)
    if kind == "onnx":
        return _from(out, Path(reference))
    return f"hf:{_from(out, Path(reference[3:]))}" if kind == "hf" else reference


def _from(out: Path, path: Path) -> str:
    return Path(os.path.relpath(path.absolute(), out.absolute())).as_posix()


def _flow(value: Any) -> str:
    """A mapping as one line of YAML that reads well: keys bare, texts quoted where they must be."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _value(value)


def _value(value: Any) -> str:
    words = ("null", "true", "false", "yes", "no")
    if isinstance(value, str):
        bare = re.fullmatch(r"[A-Za-z_./][\w./-]*", value, re.ASCII) and value.lower() not in words
        return value if bare else f'"{"".join(map(_escaped, value))}"'
    return _flow(value) if isinstance(value, list) else canonical_json(value)


def _escaped(letter: str) -> str:
    """A letter between double quotes in YAML."""
    if letter in '"\\':
        return f"\\{letter}"
    return letter if letter.isprintable() else f"\\U{ord(letter):08x}"
