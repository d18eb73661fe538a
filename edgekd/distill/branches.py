"""The rest of a network behind one of its stages, as a network of its own: a branch on another network's stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgekd.distill.knowledge.adapters import Connector
from edgekd.errors import ConfigError, first_line
from edgekd.train.feed import to_input
from edgekd.train.references import submodule
from edgekd.train.world import Model, World

FEATURE = "feature"
_HINT = "use networks whose stages follow each other, as those of the zoo, or name others with `layers:`"


@dataclass(frozen=True)
class Branch:
    """Edit: the target becomes what a student does behind one of its stages, to be called on a teacher's stage.

    A 1x1 convolution with BatchNorm and ReLU brings the teacher's channels to the student's (SFTN, Park et al. 2021).
    The rest is a copy of the student as it is. `stages`: of the student and of the teacher, with maps of one size.
    """

    student: str
    teacher: str
    stages: tuple[str, str]
    target: str

    @property
    def touches(self) -> tuple[str, ...]:
        return (self.target,)

    def __call__(self, world: World, seed: int) -> None:
        student = world.models[self.student]
        own, theirs = (
            output_of(world, name, stage) for name, stage in zip((self.student, self.teacher), self.stages, strict=True)
        )
        if own.dim() != 4 or theirs.dim() != 4 or own.shape[2:] != theirs.shape[2:]:
            shapes = tuple(own.shape[1:]), tuple(theirs.shape[1:])
            raise ConfigError(
                f"a branch joins maps of one size, not {self.stages[0]} {shapes[0]} and {self.stages[1]} {shapes[1]}",
                hint=_HINT,
            )
        torch.default_generator.manual_seed(seed)
        bridge = Connector(theirs.shape[1], own.shape[1], relu=True).to(own.device)
        rest = rest_of(student, self.stages[0], example_of(world, student))
        world.models[self.target] = Model(nn.Sequential(bridge, rest), (FEATURE,), student.outputs)


def rest_of(model: Model, stage: str, feeds: Mapping[str, Tensor]) -> fx.GraphModule:
    """A copy of what a network does behind a stage: from the stage's output (N, C, H, W) to the network's outputs.

    Args:
        stage: path of a submodule that runs once.
        feeds: named inputs (N, ..) to compare the rest with the whole.

    Raises:
        ConfigError: the network cannot be traced, or something goes around the stage.
    """
    submodule(model.network, "student", stage)
    network = copy.deepcopy(model.network).eval()
    try:
        graph = _Tracer(stage).trace(network)
    except Exception as error:  # a network's own forward may raise anything on symbolic tensors
        raise ConfigError(f"the student cannot be split at {stage}: {first_line(error)}", hint=_HINT) from error
    places = [node for node in graph.nodes if node.op == "call_module" and node.target == stage]
    if len(places) != 1:
        raise ConfigError(f"the student cannot be split at {stage}: it runs {len(places)} times", hint=_HINT)
    rest = fx.GraphModule(network, _after(graph, places[0], stage))
    _check(network, rest, stage, tuple(feeds[name] for name in model.inputs))
    return rest


class _Tracer(fx.Tracer):
    """Keeps one submodule whole, so that it is one node of the graph."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a node of its own."""
        return module_qualified_name == self._stage or super().is_leaf_module(m, module_qualified_name)


def _after(graph: fx.Graph, place: fx.Node, stage: str) -> fx.Graph:
    """The graph behind a node, with its value as the only input."""
    rest = fx.Graph()
    known: dict[fx.Node, fx.Node] = {place: rest.placeholder(FEATURE)}
    nodes = list(graph.nodes)
    for node in nodes[nodes.index(place) + 1 :]:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in known:
                known[source] = rest.node_copy(source)
            if source not in known:
                raise ConfigError(f"the student cannot be split at {stage}: {source.name} goes around it", hint=_HINT)
        known[node] = rest.node_copy(node, lambda source: known[source])
    return rest


@torch.no_grad()
def _check(network: nn.Module, rest: nn.Module, stage: str, inputs: tuple[Tensor, ...]) -> None:
    """The rest, after the stage, must give what the whole gives, in evaluation mode."""
    seen: list[Tensor] = []
    handle = network.get_submodule(stage).register_forward_hook(lambda module, given, output: seen.append(output))
    whole = network(*inputs)
    handle.remove()
    if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(_flat(whole), _flat(rest(seen[0])), strict=True)):
        raise ConfigError(f"the student cannot be split at {stage}: its rest gives something else", hint=_HINT)


def _flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result.values() if isinstance(result, Mapping) else result)


def example_of(world: World, model: Model) -> dict[str, Tensor]:
    """Two rows of the training table as a network sees them, on its device."""
    device = next(model.network.parameters()).device
    rows = world.tables["train"].take(torch.arange(2) % len(world.tables["train"]))
    return {name: to_input(world, name, rows.inputs[name], device) for name in model.inputs}


def output_of(world: World, name: str, stage: str) -> Tensor:
    """What a module of a model gives for two rows of the training table, in evaluation mode."""
    model, seen = world.models[name], []
    handle = submodule(model.network, name, stage).register_forward_hook(lambda module, _, output: seen.append(output))
    try:
        outputs_of(world, name)
    finally:
        handle.remove()
    found: Tensor = seen[0]
    return found


@torch.no_grad()
def outputs_of(world: World, name: str) -> dict[str, Tensor]:
    """What a model gives for two rows of the training table, in evaluation mode, by the names of its outputs."""
    model = world.models[name]
    training = model.network.training
    try:
        model.network.eval()
        return model(example_of(world, model))
    finally:
        model.network.train(training)
