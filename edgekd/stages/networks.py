"""Networks in and out of artefacts: built from a recipe, loaded, saved with the facts that a report needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgekd.data.table import Rows
from edgekd.errors import ConfigError, first_line
from edgekd.files import write_atomic
from edgekd.models.facts import input_names, macs, parameter_count, size_bytes
from edgekd.models.resolve import build
from edgekd.models.settings import ModelSettings
from edgekd.models.weights import apply_state, load_state, save_state
from edgekd.stages.context import Common, Context
from edgekd.store import Artifact
from edgekd.tasks.task import Score, task_named
from edgekd.train.feed import to_input
from edgekd.train.world import Model, World, named_outputs

WEIGHTS = "weights.safetensors"
CURVES = "curves.json"
CPU = torch.device("cpu")


def make_world(common: Common, *, tables: Mapping[str, Rows]) -> World:
    """An empty world over the pipeline's data."""
    return World({}, dict(tables), common.heads, common.data.normalization())


def training_tables(common: Common, names: Iterable[str] = ()) -> dict[str, Rows]:
    """The splits that training may see, and further tables of these names."""
    tables = {"train": common.data.load("train")}
    if common.data.counts().get("validation"):
        tables["validation"] = common.data.load("validation")
    return tables | {name: common.data.table(name) for name in names}


def fresh_model(
    common: Common, settings: ModelSettings, *, seed: int, tell: Callable[[str], None] | None = None
) -> Model:
    """Build a network from its recipe with seeded weights (or the given ones), and try it on real samples.

    `tell` gets a line about each wrapping of the weights that was taken off.

    Raises:
        ConfigError: the factory, its arguments or the weights do not work with this data.
        DataError: labels do not fit the network's outputs.
    """

    columns = settings.inputs or common.data.input_names

    def fresh() -> torch.nn.Module:
        return build(settings.model, settings.args, common.base, _defaults(common, columns))

    torch.default_generator.manual_seed(seed)
    network = fresh()
    if settings.weights is not None:
        path = common.base / settings.weights
        notes: list[str] = []
        apply_state(network, load_state(path, notes), path)
        for note in notes:
            (tell or _silent)(f"note: {path.name}: {note}")
    names = _match_inputs(network, columns, settings.model, chosen=settings.inputs is not None)
    outputs = tuple(head.output for head in common.heads)
    model = Model(network, names, outputs, fresh)
    _try(common, model, settings.model)
    return model


def _silent(text: str) -> None:
    """Where nobody listens."""


def warn_of_start(context: Context, settings: ModelSettings, *, trains: bool) -> None:
    """Say what a network starts from, where nobody said what it should be; kept with the artefact, for the report."""
    found = [*_unsaid_normalization(context.common, settings)]
    if settings.weights is None and not trains:
        found.append("no weights are given: those that the factory makes count, and are random unless it loads some")
    for text in found:
        context.warn(text)
    context.draft.facts["warnings"] = found


def _unsaid_normalization(common: Common, settings: ModelSettings) -> Iterator[str]:
    """Trained weights expect the inputs they were trained on."""
    data = common.data
    if settings.weights is None or "normalize" in data.settings.model_fields_set:
        return
    for name in settings.inputs or data.input_names:
        found = data.normalization()[name]
        mean, std = (", ".join(f"{value:.3g}" for value in values[:3]) for values in (found.mean, found.std))
        yield (
            f"{name} is normalised by this data (mean {mean}, std {std}); "
            "if the weights were trained otherwise, set data.normalize"
        )


def load_model(common: Common, artifact: Artifact) -> Model:
    """The float network of an artefact, in evaluation mode."""
    facts = artifact.facts
    network = build(facts["model"], facts["args"], common.base, _defaults(common, facts["inputs"]))
    path = artifact.path(WEIGHTS)
    apply_state(network, load_state(path), path)
    return Model(network.eval(), tuple(facts["inputs"]), tuple(facts["outputs"]))


def save_model(
    context: Context, model: Model, settings: ModelSettings, scores: Mapping[str, Score], split: str
) -> None:
    """Write a network into the stage's draft: weights, and the facts that rebuild and describe it."""
    network, draft = model.network.to(CPU), context.draft
    save_state(network, draft.folder / WEIGHTS)
    example = example_inputs(context.common, model)
    draft.facts.update(
        model=settings.model,
        args=settings.args,
        inputs=model.inputs,
        outputs=model.outputs,
        parameters=parameter_count(network),
        macs=macs(network, tuple(x[:1] for x in example.values())),
        size_bytes=size_bytes(network),
        metrics=metrics(scores, split),
        data=data_facts(context.common),
    )


def save_curves(context: Context, curves: list[dict[str, Any]]) -> None:
    """Write the training curves beside the weights; what training warned of becomes a fact of the artefact."""
    told = [warning["text"] for curve in curves for warning in curve.get("warnings", ())]
    context.draft.facts["warnings"] = [*context.draft.facts.get("warnings", ()), *told]
    write_atomic(context.draft.folder / CURVES, json.dumps({"phases": curves}, indent=1))


def example_inputs(common: Common, model: Model, rows: int = 2) -> dict[str, Tensor]:
    """Named inputs of the first training samples as the network sees them, contiguous."""
    train = common.data.load("train")
    table = train.take(torch.arange(rows) % len(train))
    world = make_world(common, tables={})
    return {name: to_input(world, name, table.inputs[name], CPU).contiguous() for name in model.inputs}


def metrics(scores: Mapping[str, Score], split: str) -> list[dict[str, Any]]:
    """Scores in the form of report.json."""
    return [
        {
            "name": name,
            "value": s.value,
            "unit": s.unit,
            "split": split,
            "n": s.n,
            "ci95": list(s.ci95),
            "better": s.better,
        }
        for name, s in scores.items()
    ]


def data_facts(common: Common) -> dict[str, Any]:
    """What a report says of the data, so that a cached run need not open it."""
    return {"n": common.data.counts()}


def factory_defaults(common: Common, settings: ModelSettings) -> dict[str, Any]:
    """What the data says about a network, of that which its factory names as an argument."""
    from edgekd.models.resolve import argument_names

    known = _defaults(common, settings.inputs or common.data.input_names)
    return {name: known[name] for name in argument_names(settings.model, common.base) if name in known}


def _defaults(common: Common, columns: Sequence[str]) -> dict[str, Any]:
    """What the data says about a network of these inputs: passed to factories that name these arguments."""
    train = common.data.load("train")
    defaults: dict[str, Any] = {}
    classes = common.data.classes()
    known = [classes[h.target].count for h in common.heads if h.target in classes and h.task == "classification"]
    if len(known) == 1:
        defaults["num_classes"] = known[0]
    first = train.inputs[columns[0]]
    if len(columns) == 1 and first.dim() > 1:
        defaults["in_channels"] = first.shape[1]
        if first.dim() == 4:
            defaults["image_size"] = first.shape[-1]
    return defaults


def _match_inputs(
    network: torch.nn.Module, columns: tuple[str, ...], reference: str, *, chosen: bool
) -> tuple[str, ...]:
    """Data columns in the order of the network's forward: by name, or the only one whatever its name.

    `chosen`: those of a pipeline file, which are in that order already where all have other names.

    Raises:
        ConfigError: some names are arguments of forward, and others are not.
    """
    names = input_names(network)
    if len(columns) == 1:
        return columns
    wanted = tuple(name for name in names if name in columns)
    if set(wanted) != set(columns):
        if chosen and not wanted:
            return columns
        raise ConfigError(
            f"{reference} takes {', '.join(names)}, {'`inputs:`' if chosen else 'the data'} has {', '.join(columns)}",
            hint="give the arguments of `forward` the names of the data's inputs",
        )
    return wanted


@torch.no_grad()
def _try(common: Common, model: Model, reference: str) -> None:
    """Two real samples through the network: shapes and outputs must fit the task before hours are spent."""
    inputs = example_inputs(common, model)
    training = model.network.training
    model.network.eval()
    try:
        result = model.network(*inputs.values())
    except Exception as error:  # the user's own forward may raise anything
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in inputs.items())
        raise ConfigError(
            f"{reference} fails on the data ({shapes}): {first_line(error)}",
            hint="check `args:` and the network's input size and channels",
        ) from error
    finally:
        model.network.train(training)
    try:
        outputs = named_outputs(result, model.outputs)
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{reference} does not return {', '.join(model.outputs)}",
            hint="name each output with its task: `task: {first: classification, second: regression}`",
        ) from None
    train = common.data.load("train")
    for head in common.heads:
        if head.target is not None and head.target in train.targets:
            task_named(head.task).check(outputs[head.output], train.targets[head.target], reference)
