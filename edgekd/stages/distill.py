"""distill: train a student by a scheme, most of them from a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from edgekd.data.views import Views
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.pairing import Stages, pair, stages_of
from edgekd.distill.schemes.choose import Cast, phases_of
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.terms import PairOf
from edgekd.distill.term_settings import Pair
from edgekd.errors import ConfigError
from edgekd.models.facts import parameter_count
from edgekd.models.settings import ModelSettings
from edgekd.stages.context import Common, Context
from edgekd.stages.networks import (
    example_inputs,
    fresh_model,
    load_model,
    make_world,
    save_curves,
    training_tables,
)
from edgekd.stages.settings import DistillStage, tables_of
from edgekd.stages.teacher import save_trained
from edgekd.stages.training import optim, run_phases, stage_train_settings, target_options
from edgekd.store import Artifact, Draft, Store
from edgekd.train.rehearsal import rehearse_phases
from edgekd.train.world import Model, Phase, World


def run(context: Context) -> None:
    """Train the student; a teacher that an earlier stage made is frozen and stays in evaluation mode."""
    options = context.options(DistillStage)
    settings = stage_train_settings(context)
    source = _source(context, options)
    world = make_world(context.common, tables=training_tables(context.common, tables_of(options)))
    teacher = None
    if source is not None:
        world.models["teacher"] = load_model(context.common, source)
        facts = source.facts
        teacher = ModelSettings(model=facts["model"], args=facts["args"], inputs=tuple(facts["inputs"]))
    networks, phases = _plan(context, world, teacher)
    _note_expansion(context, world, options)
    for table in tables_of(options):
        for target, why in context.common.data.left_out(table).items():
            context.tell(f"{context.stage}: note: the table {table} goes without its {target!r}: {why}")
    frozen = {"teacher": source} if source is not None and options.reads_teacher else {}
    curves = run_phases(context, world, phases, settings, learner="student", frozen=frozen)
    winner = _winner(world, networks)
    if options.goes_on == "best":
        context.tell(f"{context.stage}: {winner} ({networks[winner].model}) goes on as the student")
    save_trained(context, world, world.models["student"], "student", networks[winner])
    save_curves(context, curves)


def rehearse(common: Common, options: DistillStage, teacher: ModelSettings | None, store: Store) -> None:
    """Make everything that the stage will train, untrained: what does not fit is known before anything is trained.

    Raises:
        ConfigError: a layer, a knowledge or an augmentation does not fit the networks or the data.
    """
    context = Context("distill", options, common, {}, Draft(Path()), Path(), store, tell=lambda text: None)
    world = make_world(common, tables=training_tables(common, tables_of(options)))
    if teacher is not None and options.uses_teacher:
        world.models["teacher"] = fresh_model(common, teacher.model_copy(update={"weights": None}), seed=common.seed)
    _, phases = _plan(context, world, teacher if options.uses_teacher else None)
    rehearse_phases(world, phases, Views(common.data.settings.augment, common.seed), common.seed)


def _plan(
    context: Context, world: World, teacher: ModelSettings | None
) -> tuple[dict[str, ModelSettings], list[Phase]]:
    """Build the networks of the scheme into the world, the student first, and make its phases."""
    options = context.options(DistillStage)
    student = options.network()
    networks = {"student": student, **options.beside(student, teacher)}
    for number, (name, network) in enumerate(networks.items(), start=1):
        # Other seeds than the teacher's, which may be a network of the same kind.
        common = context.common.of(options.head_of(name))
        world.models[name] = fresh_model(common, network, seed=common.seed + number)
    _check_inputs(world, options)
    recipe = Recipe(
        context.common.heads,
        optim(context),
        options.epochs,
        options.select == "best",
        options.task(),
        options.taught(),
        _pairs(context, world),
        **target_options(context),
    )
    cast = Cast(
        [*networks][1:],
        teacher is not None,
        lambda: _stages(context, world, options),
        lambda: _batchnorms(context, world.models["teacher"]),
        lambda name: world.tables[name].targets if name in world.tables else None,
    )
    return networks, phases_of(recipe, options, cast)


def _check_inputs(world: World, options: DistillStage) -> None:
    """Where the teacher should see something else than the student, it must."""
    if options.facts.other_inputs and world.models["teacher"].inputs == world.models["student"].inputs:
        seen = ", ".join(world.models["student"].inputs)
        raise ConfigError(
            f"scheme {options.scheme}: teacher and student see the same ({seen})",
            hint="say which inputs of the data each takes: teacher: {inputs: [..]}, distill: {inputs: [..]}",
        )


def _note_expansion(context: Context, world: World, options: DistillStage) -> None:
    """Noisy students are at least as large as their teachers, and learn under noise (Xie et al. 2020)."""
    if options.scheme != "expansion":
        return
    student, teacher = (parameter_count(world.models[name].network) for name in _BOTH)
    if student < teacher:
        context.tell(
            f"{context.stage}: note: the student has {student:,} parameters, its teacher {teacher:,}; expansion is "
            "for students at least as large"
        )
    dropout = any(isinstance(m, nn.Dropout) and m.p for m in world.models["student"].network.modules())
    if context.common.data.settings.augment is None and not dropout:
        context.tell(f"{context.stage}: note: the student learns without noise; set data.augment, or use dropout")


def _batchnorms(context: Context, teacher: Model) -> tuple[str, ...]:
    """Layers with the statistics of one place: those that run once."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    named = teacher.network.named_modules()
    found = tuple(name for name, m in named if isinstance(m, kinds) and m.track_running_stats)
    once = stages_of(teacher, example_inputs(context.common, teacher)).once
    left = [name for name in found if name not in once]
    if left:
        context.tell(
            f"{context.stage}: note: no sample is drawn to the statistics of {', '.join(left)}: never run, or twice"
        )
    return tuple(name for name in found if name in once)


def _source(context: Context, options: DistillStage) -> Artifact | None:
    """The teacher that the scheme learns from, if there is one."""
    found = context.inputs.get("teacher") or context.inputs.get("model")
    if found is not None and not options.uses_teacher:
        context.tell(f"{context.stage}: scheme {options.scheme} learns from no teacher; it is only compared with")
        return None
    return found


def _winner(world: World, networks: dict[str, ModelSettings]) -> str:
    """Whose weights the student has: those of a peer, where the best of them goes on."""
    own = world.models["student"].network.state_dict()
    for name in [name for name in networks if name != "student"]:
        other = world.models[name].network.state_dict()
        if own.keys() == other.keys() and all(value.equal(other[key]) for key, value in own.items()):
            return name
    return "student"


def _stages(context: Context, world: World, options: DistillStage) -> Sequence[Pair]:
    """Stages that a scheme joins: those that the file names, else those of one size."""
    given = options.student_friendly.layers
    if given != "auto":
        return given
    student, teacher = (stages_of(m, example_inputs(context.common, m)) for m in map(world.models.__getitem__, _BOTH))
    pairs = pair(student, teacher, options.scheme)
    context.tell(f"{context.stage}: stages are " + ", ".join(f"{s} and {t}" for s, t in pairs))
    return pairs


_BOTH = ("student", "teacher")


def _pairs(context: Context, world: World) -> PairOf:
    """Layers that a knowledge compares: those that the file names, else stages of one size; the log says which."""
    found: dict[str, Stages] = {}

    def of(item: KnowledgeSettings, student: str, teacher: str) -> Sequence[Pair]:
        if item.layers is not None:
            return item.layers
        for name in (student, teacher):
            if name not in found:
                model = world.models[name]
                found[name] = stages_of(model, example_inputs(context.common, model))
        pairs = pair(found[student], found[teacher], item.name)
        whom = "" if (student, teacher) == _BOTH else f" of {student} and {teacher}"
        context.tell(f"{context.stage}: {item.name}{whom} compares " + ", ".join(f"{s} with {t}" for s, t in pairs))
        return pairs

    return of
