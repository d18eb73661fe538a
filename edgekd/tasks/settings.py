"""Which heads a network has: the `task:` of a pipeline file (torch-free)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Literal

from edgekd.config import Settings
from edgekd.errors import ConfigError

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

    Raises:
        ConfigError: a head has almost the name of a target that is left over.
    """
    if isinstance(task, str):
        only = targets[0] if len(targets) == 1 else None
        return (HeadSettings(output=OUTPUT_NAMES[task], task=task, target=only),)
    names = {output: (output if output in targets else None) for output in task}
    if len(task) == 1 and len(targets) == 1:
        names = dict.fromkeys(task, targets[0])
    left = [target for target in targets if target not in names.values()]
    for output, target in names.items():
        if target is None and (near := get_close_matches(output, left, n=1)):
            raise ConfigError(
                f"task: the data has no target {output!r} for this output", hint=f"did you mean {near[0]!r}?"
            )
    return tuple(HeadSettings(output=output, task=kind, target=names[output]) for output, kind in task.items())
