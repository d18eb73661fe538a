"""References: how terms name tensors of a world, and their values in one step.

label                     a column of the batch
student                   the only output of a model
student[logits]           one of several outputs
student.layer2            what a submodule returns (a tap, by forward hook on the unmodified network)
                          as it returned it, whatever is written over it later; it must run once in a forward pass
teacher.bn1:in            what a submodule is given
teacher#bn1.running_mean  a parameter or buffer
student(image_noisy)      the model on another input, here a column
critic(student.layer2)    the model on any other reference; so on: teacher.bn1:in(generator(noise))
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from edgekd.errors import ConfigError
from edgekd.train.world import World

Tap = tuple[str, str, bool]  # model, path of a submodule, whether it is what the submodule is given

_FORM = re.compile(
    r"^(?P<name>\w+)(?:#(?P<state>[\w.]+)|"
    r"(?:\[(?P<output>\w+)\])?(?:\.(?P<path>[\w.]+?))?(?P<given>:in)?(?:\((?P<argument>.+)\))?)$"
)


@dataclass(frozen=True)
class Reference:
    """A parsed reference.

    Attributes:
        name: of a model or a column.
        output: of a model.
        path: of a submodule.
        given: whether it is what the submodule is given.
        argument: text of the reference that the model is called on in place of its first input.
        state: path of a parameter or buffer.
    """

    name: str
    output: str | None = None
    path: str | None = None
    given: bool = False
    argument: str | None = None
    state: str | None = None


@cache
def parse(text: str) -> Reference:
    """Parse a reference; raises ConfigError for text of another form."""
    match = _FORM.match(text)
    if match is None:
        raise ConfigError(f"{text!r} is not a reference", hint="write e.g. student, student[logits], student.layer2")
    parts = match.groupdict()
    if parts["argument"] is not None:
        parse(parts["argument"])
    return Reference(
        parts["name"], parts["output"], parts["path"], parts["given"] is not None, parts["argument"], parts["state"]
    )


def parse_all(texts: Iterable[str]) -> list[Reference]:
    """The references of some texts and those inside of them, each once."""
    found: dict[Reference, None] = {}
    for text in texts:
        at: str | None = text
        while at is not None:
            reference = parse(at)
            found[reference] = None
            at = reference.argument
    return list(found)


def check_references(world: World, columns: set[str], references: Iterable[Reference]) -> None:
    """Raise ConfigError for names that are neither models nor columns, and for models whose inputs are missing."""
    for reference in references:
        if reference.name not in world.models and reference.name not in columns:
            raise ConfigError(
                f"a term names {reference.name!r}, which is neither a model nor a column of the data",
                hint=f"models: {', '.join(world.models)}; columns: {', '.join(sorted(columns))}",
            )
        model = world.models.get(reference.name)
        if model is not None and reference.state:
            state_of(model.network, reference.name, reference.state)
        elif model is not None:
            read = set(model.inputs[reference.argument is not None :])
            if not read <= columns:
                raise ConfigError(
                    f"{reference.name} reads {', '.join(sorted(read - columns))}, which the data has not",
                    hint=f"columns: {', '.join(sorted(columns))}; write {reference.name}(..) to call it on another",
                )


class Taps:
    """Forward hooks on the submodules that the references of a phase name; installed once per phase.

    `seen`: what they recorded since `recording` began, each call of a submodule in its turn, with the number of times
    that it had been written to; None for a copy. Only what the network itself writes over is copied, as `look` found.
    """

    def __init__(self, world: World, references: list[Reference]) -> None:
        self.seen: dict[Tap, list[tuple[Tensor, int | None]]] = {}
        self._recording = False
        self._looked: set[str] = set()
        self._copied: set[Tap] = set()
        self._world = world
        self._handles: list[Any] = []
        self._learnable: dict[str, list[nn.Parameter]] = {}
        for key in dict.fromkeys((r.name, r.path, r.given) for r in references if r.path):
            model, path, given = key
            assert path is not None
            module = submodule(world.models[model].network, model, path)
            self.seen[model, path, given] = []
            self._handles.append(self._install(module, (model, path, given)))

    def _install(self, module: nn.Module, tap: Tap) -> Any:
        def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._record(tap, inputs[0] if inputs else next(iter(named.values()), None))

        def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._record(tap, output)

        # Before, not after: a module may write over what it is given.
        return (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if tap[2]
            else module.register_forward_hook(after)
        )

    def _record(self, tap: Tap, value: Any) -> None:
        if not self._recording:
            return
        found = _only_tensor(value, tap)
        if tap in self._copied:
            self.seen[tap].append((found.clone(), None))
        else:  # compiled code is fixed by what `look` saw
            self.seen[tap].append((found, None if torch.compiler.is_compiling() else found._version))

    def look(self, name: str, feeds: Mapping[str, Tensor]) -> None:
        """Run a model on two rows, once, to see which taps it writes over, as ReLU(inplace=True) and `x += y` do.

        Not while it learns: a copy in some steps alone would change the order in which gradients are added up, and
        a run that is resumed would differ. Nothing that a step depends on changes.
        """
        taps = [tap for tap in self.seen if tap[0] == name]
        if name in self._looked or not taps:
            return
        self._looked.add(name)
        model = self._world.models[name]
        network, training = model.network, model.network.training
        if any(isinstance(m, _DropoutNd) and m.inplace for m in network.modules()):
            self._copied.update(taps)  # it writes in training alone
        rows = {key: feeds[key][:2] for key in model.inputs}
        cuda = {x.device for x in rows.values() if x.device.type == "cuda"}
        network.eval()
        try:
            eager = torch.compiler.set_stance("force_eager")
            with torch.no_grad(), torch.random.fork_rng(cuda), eager, self.recording():
                model(rows)
                self._copied.update(tap for tap in taps if any(map(_overwritten, self.seen[tap])))
        finally:
            network.train(training)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, a forward pass leaves what submodules gave in `seen`; outside, hooks do nothing and hold nothing."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False
            for values in self.seen.values():
                values.clear()

    @property
    def installed(self) -> bool:
        """Whether any submodule is tapped."""
        return bool(self._handles)

    @contextlib.contextmanager
    def fixed(self, name: str) -> Iterator[None]:
        """Inside, a model's parameters are constants: gradients go through it, and none are left in it."""
        if name not in self._learnable:
            network = self._world.models[name].network
            self._learnable[name] = [p for p in network.parameters() if p.requires_grad]
        for parameter in self._learnable[name]:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._learnable[name]:
                parameter.requires_grad_(True)

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
        self._tapped: dict[tuple[str, str | None, str, bool], list[Tensor]] = {}

    def get(self, text: str) -> Tensor:
        """The value of a reference: outputs in float32, features of layers in the precision they were computed in."""
        reference = parse(text)
        if reference.name not in self._world.models:
            return self._batch[reference.name]
        if reference.state is not None:
            return self._state(reference.name, reference.state)
        outputs = self._run(reference.name, reference.argument)
        if reference.path:
            key = reference.name, reference.argument, reference.path, reference.given
            return _only_call(self._tapped[key], text)
        if reference.output is None and len(outputs) > 1:
            raise ConfigError(
                f"{text!r} has several outputs: {', '.join(outputs)}",
                hint=f"write e.g. {reference.name}[{next(iter(outputs))}]",
            )
        return outputs[reference.output or next(iter(outputs))].float()

    def _state(self, name: str, path: str) -> Tensor:
        value = state_of(self._world.models[name].network, name, path)
        return value if name in self._learners else value.detach()

    def _run(self, name: str, argument: str | None) -> dict[str, Tensor]:
        key = (name, argument)
        if key in self._outputs:
            return self._outputs[key]
        model = self._world.models[name]
        feeds = self._batch if argument is None else {**self._batch, model.inputs[0]: self.get(argument)}
        count = fed = len(feeds[model.inputs[0]])
        self._taps.look(name, feeds)
        with self._taps.recording():
            # Guides are derived, never declared: gradients are recorded only where something learns.
            if name in self._learners:
                self._outputs[key] = model(feeds)
            elif argument is not None and feeds[model.inputs[0]].requires_grad and torch.is_grad_enabled():
                with self._taps.fixed(name):  # what made the argument learns through this model
                    self._outputs[key] = model(feeds)
            else:
                self._outputs[key], fed = model.answer(feeds, self._rows), max(count, self._rows)
            for (owner, path, given), values in self._taps.seen.items():
                if owner == name:
                    self._tapped[name, argument, path, given] = [_first(seen, count, fed, path) for seen in values]
        return self._outputs[key]


def _overwritten(seen: tuple[Tensor, int | None]) -> bool:
    """Whether something was written to a tensor since a tap saw it."""
    value, version = seen
    return version is not None and value._version != version


def _first(seen: tuple[Tensor, int | None], count: int, fed: int, path: str) -> Tensor:
    """The rows of a batch without those that filled it up (Model.answer)."""
    value, _ = seen
    if _overwritten(seen):
        raise ConfigError(
            f"what module {path!r} has is written over in training and not in evaluation",
            hint="let the operation behind it make a new tensor, e.g. inplace=False",
        )
    if value.shape[:1] != (fed,):
        raise ConfigError(
            f"module {path!r} has {tuple(value.shape)} for {fed} samples, and terms compare sample by sample",
            hint="name a module whose tensors have the batch first, (N, ..)",
        )
    return value[:count] if count < fed else value


def _only_tensor(value: Any, tap: Tap) -> Tensor:
    """What a submodule gave or was given, where that is one tensor, alone or among things that are none."""
    parts = list(value.values()) if isinstance(value, Mapping) else value
    found = [x for x in parts if isinstance(x, Tensor)] if isinstance(parts, (tuple, list)) else [parts]
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0]
    model, path, given = tap
    raise ConfigError(
        f"{model}.{path} {'is given' if given else 'gives'} {len(found) if len(found) != 1 else 'no'} tensors, "
        "and a term compares one",
        hint="name a module that gives one tensor, or what the next module is given, as `module:in`",
    )


def _only_call(values: list[Tensor], text: str) -> Tensor:
    """The value of a tap whose submodule ran once."""
    if len(values) != 1:
        raise ConfigError(
            f"{text!r} names a module that runs {len(values)} times in a forward pass of its model",
            hint="name one that runs once, e.g. the block around it",
        )
    return values[0]


def submodule(network: nn.Module, model: str, path: str) -> nn.Module:
    """A submodule by its dotted path, shared ones by any; raises ConfigError that lists the nearest names."""
    found: nn.Module = _named(dict(network.named_modules(remove_duplicate=False)), model, path, "module")
    return found


def state_of(network: nn.Module, model: str, path: str) -> Tensor:
    """A parameter or buffer by its dotted path; raises ConfigError that lists the nearest names."""
    owner, _, name = path.rpartition(".")
    try:
        value = getattr(network.get_submodule(owner), name)
    except AttributeError:
        value = None
    if isinstance(value, Tensor):
        return value
    states = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    found: Tensor = _named(states, model, path, "parameter or buffer")
    return found


def _named(things: Mapping[str, Any], model: str, path: str, kind: str) -> Any:
    if path not in things:
        near = difflib.get_close_matches(path, things, n=3, cutoff=0.3) or [n for n in things if n][:5]
        raise ConfigError(f"{model} has no {kind} {path!r}", hint=f"near are: {', '.join(near)}")
    return things[path]
