"""Which heads a network has: the `task:` of a pipeline file (torch-free)."""

from __future__ import annotations

from typing import Literal

from edgekd.config import Settings

TaskName = Literal["classification", "regression"]
TASKS: tuple[TaskName, ...] = ("classification", "regression")
OUTPUT_NAMES: dict[TaskName, str] = {"classification": "logits", "regression": "value"}


class HeadSettings(Settings):
    """One output of the network."""

    output: str
    """Name of the output in ONNX, builds and reports."""
    task: TaskName
    """What the output is trained for: classification (cross-entropy, accuracy) or regression (squared error, MAE)."""
    target: str | None
    """Column of the data set that holds the truth; null when the data has none."""


def heads_of(task: TaskName | dict[str, TaskName], targets: tuple[str, ...]) -> tuple[HeadSettings, ...]:
    """Heads of a pipeline: one named after its task, or one for each entry of `task: {output: task, ..}`.

    A single head takes the data's only target, whatever its name; several heads take the targets of their own names.
    """
    if isinstance(task, str):
        only = targets[0] if len(targets) == 1 else None
        return (HeadSettings(output=OUTPUT_NAMES[task], task=task, target=only),)
    names = {output: (output if output in targets else None) for output in task}
    if len(task) == 1 and len(targets) == 1:
        names = dict.fromkeys(task, targets[0])
    return tuple(HeadSettings(output=output, task=kind, target=names[output]) for output, kind in task.items())
