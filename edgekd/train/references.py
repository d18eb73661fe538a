"""References: how terms name tensors of a world, and their values in one step.

label                  a column of the batch
student                the only output of a model
student[logits]        one of several outputs
student.layer2         what a submodule returns (a tap, by forward hook on the unmodified network)
teacher.bn1:in         what a submodule is given
student(image_noisy)   the model on another input
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.train.world import World

_FORM = re.compile(
    r"^(?P<name>\w+)(?:\[(?P<output>\w+)\])?(?:\.(?P<path>[\w.]+?))?(?P<given>:in)?(?:\((?P<argument>\w+)\))?$"
)


@dataclass(frozen=True)
class Reference:
    """A parsed reference: a name, and for models an output or a submodule's path, and an input of its own."""

    name: str
    output: str | None = None
    path: str | None = None
    given: bool = False
    argument: str | None = None


@cache
def parse(text: str) -> Reference:
    """Parse a reference; raises ConfigError for text of another form."""
    match = _FORM.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a reference", hint="write e.g. student, student[logits], student.layer2")
    parts = match.groupdict()
    return Reference(parts["name"], parts["output"], parts["path"], parts["given"] is not None, parts["argument"])


class Taps:
    """Forward hooks on the submodules that the references of a phase name; installed once per phase."""

    def __init__(self, world: World, references: list[Reference]) -> None:
        self.seen: dict[tuple[str, str, bool], Tensor] = {}
        self._handles: list[Any] = []
        for key in dict.fromkeys((r.name, r.path, r.given) for r in references if r.path):
            model, path, given = key
            assert path is not None
            module = submodule(world.models[model].network, model, path)
            self._handles.append(module.register_forward_hook(self._hook((model, path, given))))

    def _hook(self, key: tuple[str, str, bool]) -> Any:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self.seen[key] = inputs[0] if key[2] else output

        return record

    @property
    def installed(self) -> bool:
        """Whether any submodule is tapped."""
        return bool(self._handles)

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()


class Values:
    """Values of references in one step; each model runs once per input, however often it is named.

    `rows`: how many rows guides see at once, however few the batch has (Model.answer).
    """

    def __init__(
        self,
        world: World,
        taps: Taps,
        batch: Mapping[str, Tensor],
        learners: set[str],
        known: Mapping[str, dict[str, Tensor]],
        rows: int = 0,
    ) -> None:
        self._rows = rows
        self._world, self._taps, self._batch, self._learners = world, taps, batch, learners
        # What frozen models say of this batch, where a cache knows it already.
        self._outputs: dict[tuple[str, str | None], dict[str, Tensor]] = {(n, None): o for n, o in known.items()}
        self._tapped: dict[tuple[str, str | None, str, bool], Tensor] = {}

    def get(self, text: str) -> Tensor:
        """The value of a reference, outputs in float32."""
        reference = parse(text)
        if reference.name not in self._world.models:
            return self._batch[reference.name]
        outputs = self._run(reference.name, reference.argument)
        if reference.path:
            return self._tapped[reference.name, reference.argument, reference.path, reference.given].float()
        if reference.output is None and len(outputs) > 1:
            raise ConfigError(
                f"{text!r} has several outputs: {', '.join(outputs)}",
                hint=f"write e.g. {reference.name}[{next(iter(outputs))}]",
            )
        return outputs[reference.output or next(iter(outputs))].float()

    def _run(self, name: str, argument: str | None) -> dict[str, Tensor]:
        key = (name, argument)
        if key not in self._outputs:
            model = self._world.models[name]
            feeds = self._batch if argument is None else {**self._batch, model.inputs[0]: self._batch[argument]}
            # Guides are derived, never declared: gradients are recorded only where something learns.
            self._outputs[key] = model(feeds) if name in self._learners else model.answer(feeds, self._rows)
            count = len(feeds[model.inputs[0]])
            for (owner, path, given), value in self._taps.seen.items():
                if owner == name:
                    self._tapped[name, argument, path, given] = value[:count]
        return self._outputs[key]


def submodule(network: nn.Module, model: str, path: str) -> nn.Module:
    """A submodule by its dotted path; raises ConfigError that lists the nearest names."""
    modules = dict(network.named_modules())
    if path not in modules:
        near = difflib.get_close_matches(path, modules, n=3, cutoff=0.3) or [n for n in modules if n][:5]
        raise ConfigError(f"{model} has no module {path!r}", hint=f"near are: {', '.join(near)}")
    found: nn.Module = modules[path]
    return found
