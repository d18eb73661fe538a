"""Which layers of two networks belong together: both are run once, and stages of equal spatial size are paired.

A stage is what the last module gives at one height and width, e.g. `layer2` of a residual network. The embedding is
what the last linear layer is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.train.world import Model

Pair = tuple[str, str]

_HINT = "name them with `layers: [[student_layer, teacher_layer], ..]`"

# Which stages a knowledge compares when the file says `auto`, as in the papers' CIFAR runs.
_CHOICE = {
    "hint": "middle",
    "nst": "last",
    "factor": "last",
    "similarity": "last",
    "fsp": "alike",
    "hierarchical_context": "alike",
    **dict.fromkeys(("rkd", "correlation", "pkt", "graph", "crd"), "embedding"),
}


@dataclass
class Stages:
    """What one network offers for pairing.

    Attributes:
        maps: module by the height and width of its output, in the order in which they were first seen.
        channels: of each of these.
        embedding: a reference to the last linear layer's input, if there is a linear layer.
        once: modules that ran exactly once.
    """

    maps: dict[tuple[int, ...], str] = field(default_factory=dict)
    channels: dict[tuple[int, ...], int] = field(default_factory=dict)
    embedding: str | None = None
    once: frozenset[str] = frozenset()


def stages_of(model: Model, feeds: Mapping[str, Tensor]) -> Stages:
    """Run a network once, in evaluation mode, and see which modules give maps of which size.

    Args:
        feeds: named inputs (N, ..).
    """
    found, network = Stages(), model.network
    calls: Counter[str] = Counter()
    maps: list[tuple[str, tuple[int, ...], int]] = []
    linear: list[str] = []

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            calls[name] += 1
            if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
                maps.append((name, tuple(output.shape[2:]), output.shape[1]))
            if isinstance(module, nn.Linear):
                linear.append(name)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in network.named_modules() if name]
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            model(feeds)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    # What runs more than once, such as one ReLU for all, has no one output.
    for name, size, channels in maps:
        if calls[name] == 1:
            # Containers end after what is in them: the last and outermost module of a size is its stage.
            found.maps[size], found.channels[size] = name, channels
    for name in linear:
        if calls[name] == 1:
            found.embedding = f"{name}:in"
    found.once = frozenset(name for name, count in calls.items() if count == 1)
    return found


def pair(student: Stages, teacher: Stages, knowledge: str) -> tuple[Pair, ...]:
    """Pairs of layers for a knowledge, shallow to deep: all stages, those of as many channels, one, or the embeddings.

    Raises:
        ConfigError: nothing fits; the message says what there is.
    """
    choice = _CHOICE.get(knowledge, "all")
    if choice == "embedding":
        if student.embedding is None or teacher.embedding is None:
            whose = "student" if student.embedding is None else "teacher"
            raise ConfigError(f"{knowledge}: the {whose} has no linear layer whose input is its embedding", hint=_HINT)
        return ((student.embedding, teacher.embedding),)
    sizes = [size for size in student.maps if size in teacher.maps]
    if choice == "alike":
        sizes = [size for size in sizes if student.channels[size] == teacher.channels[size]]
    if not sizes:
        raise ConfigError(
            f"{knowledge}: no stage of the student ({_text(student)}) fits one of the teacher ({_text(teacher)})"
            + (": it compares stages of as many channels" if choice == "alike" else ""),
            hint="take a knowledge that adapts channels, e.g. hint or review" if choice == "alike" else _HINT,
        )
    if choice == "middle":
        sizes = [sizes[(len(sizes) - 1) // 2]]
    elif choice == "last":
        sizes = [sizes[-1]]
    return tuple((student.maps[size], teacher.maps[size]) for size in sizes)


def _text(stages: Stages) -> str:
    named = [f"{name} {stages.channels[size]}x{'x'.join(map(str, size))}" for size, name in stages.maps.items()]
    return ", ".join(named) or "no maps"
