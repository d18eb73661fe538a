"""How long training will take, measured on a few steps of the networks themselves before it starts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from edgekd.errors import EdgekdError
from edgekd.pipeline.log import Log
from edgekd.pipeline.plan import Planner
from edgekd.pipeline.schema import Pipeline, networks_of
from edgekd.pipeline.start import RunOptions
from edgekd.report.words import seconds as in_words
from edgekd.stages.context import Common
from edgekd.stages.settings import DistillStage, QuantizeStage

_STEPS = 3


def tell_duration(pipeline: Pipeline, options: RunOptions, log: Log) -> float | None:
    """Say how long the training of a pipeline will take, in seconds; None where nothing is left to train.

    What cannot be measured here (a network that does not build, data that is not there) the run itself says better.
    """
    try:
        planner = Planner.open(pipeline, options.open_store())
        waiting = [step.entry for step in planner.all() if not step.cached]
        trained = [entry for entry in waiting if isinstance(entry.settings, (DistillStage, QuantizeStage))]
        if not any(entry.settings.epochs for entry in trained):  # type: ignore[attr-defined]
            return None
        parts = _measured(pipeline, planner.common(), [entry.settings for entry in trained])
    except EdgekdError:
        return None
    total = sum(parts.values())
    shares = ", ".join(f"{name} {in_words(value)}" for name, value in parts.items())
    log.info(
        f"training will take about {in_words(total)} ({shares}), by {_STEPS} steps measured now; measuring comes then"
    )
    return total


def _measured(pipeline: Pipeline, common: Common, stages: list[Any]) -> dict[str, float]:
    import torch

    from edgekd.stages.networks import fresh_model
    from edgekd.train.processor import set_up_processor

    set_up_processor(common.train)
    networks = {entry.name: networks_of(entry)[()] for entry in pipeline.stages if () in networks_of(entry)}
    student = fresh_model(common, networks["distill"].model_copy(update={"weights": None}), seed=common.seed)
    teacher = fresh_model(common, networks["model"].model_copy(update={"weights": None}), seed=common.seed)
    samples = common.data.counts()["train"]
    batch = min(common.train.batch, samples)
    steps = math.ceil(samples / batch)
    rows = common.data.load("train").take(torch.arange(batch))
    step = _seconds(_step(common, student, rows))
    answer = _seconds(_answer(common, teacher, rows))
    augment = common.data.settings.augment
    found = {}
    for settings in stages:
        epochs = settings.epochs
        # A frozen teacher is asked once for each view of a sample: as often as there are epochs, at most.
        views = min(epochs, augment.per_sample if augment is not None else 1)
        if isinstance(settings, DistillStage):
            found["the student"], found["the teacher's answers"] = epochs * steps * step, views * steps * answer
        elif epochs:
            rounded = _seconds(_step(common, _rounding(common, student, settings), rows))
            found["quantization"] = epochs * steps * rounded
    return found


def _rounding(common: Common, model: Any, settings: QuantizeStage) -> Any:
    """The network with fake-quant modules in it, whose scales are of no matter here."""
    from edgekd.quantize.quantizer import prepare
    from edgekd.stages.networks import example_inputs
    from edgekd.train.world import Model

    example = tuple(example_inputs(common, model).values())
    network = prepare(model.network.eval(), example, settings, model.outputs)
    network.set_mode("rounding")
    return Model(network, model.inputs, model.outputs)


def _step(common: Common, model: Any, rows: Any) -> Callable[[], None]:
    """One step of training: forward, backward; what a term costs beside them is little."""
    import torch

    from edgekd.stages.networks import CPU, make_world
    from edgekd.train.feed import to_input

    world = make_world(common, tables={})
    learned = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=0.0, momentum=0.9)

    def step() -> None:
        inputs = [to_input(world, name, rows.inputs[name], CPU) for name in model.inputs]
        result = model.network.train()(*inputs)
        values = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else (result,)
        sum((value.float().square().mean() for value in values), torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _answer(common: Common, model: Any, rows: Any) -> Callable[[], None]:
    import torch

    from edgekd.stages.networks import CPU, make_world
    from edgekd.train.feed import to_input

    world = make_world(common, tables={})

    def answer() -> None:
        with torch.no_grad():
            model.network.eval()(*(to_input(world, name, rows.inputs[name], CPU) for name in model.inputs))

    return answer


def _seconds(work: Callable[[], None]) -> float:
    """The median of a few calls after one that warms up."""
    work()
    times = []
    for _ in range(_STEPS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
