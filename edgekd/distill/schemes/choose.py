"""From the options of a pipeline file to the phases of its scheme."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from edgekd.config.signature import arguments_of
from edgekd.distill.own import own_scheme
from edgekd.distill.schemes.adaptation import adaptation
from edgekd.distill.schemes.adversarial import adversarial
from edgekd.distill.schemes.assistant import assistant
from edgekd.distill.schemes.cross_modal import cross_modal
from edgekd.distill.schemes.data_free import Wishes, data_free
from edgekd.distill.schemes.expansion import expansion
from edgekd.distill.schemes.federated import federated
from edgekd.distill.schemes.initiation import with_initiation
from edgekd.distill.schemes.label_free import label_free
from edgekd.distill.schemes.made import Critic, Generator
from edgekd.distill.schemes.multi_task import multi_task
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.peers import collaborative, online
from edgekd.distill.schemes.privileged import privileged
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.distill.settings import DistillationSettings, specialist
from edgekd.distill.term_settings import Pair
from edgekd.errors import ConfigError, EdgekdError
from edgekd.models.imports import blame
from edgekd.train.edits import Bootstrap, Relabel, Split, Subset
from edgekd.train.world import Optim, Phase


@dataclass(frozen=True)
class Cast:
    """The models there are when a scheme starts, besides `student`.

    Attributes:
        beside: those that are built beside the student, see `DistillationSettings.beside`.
        teacher: whether there is a given `teacher`.
        stages: finds pairs of stages of student and teacher, for the scheme that joins them.
        batchnorms: finds the teacher's BatchNorm layers, for the scheme that draws made samples to their statistics.
        columns: targets that a table has, by its name; None for all that heads have.
    """

    beside: Sequence[str] = ()
    teacher: bool = True
    stages: Callable[[], Sequence[Pair]] = tuple
    batchnorms: Callable[[], tuple[str, ...]] = tuple
    columns: Callable[[str], Collection[str] | None] = lambda table: None


_Make = Callable[[Recipe, DistillationSettings, Cast], list[Phase]]


def phases_of(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    """The phases of the scheme that the settings name.

    Raises:
        ConfigError: the data or the networks do not fit the scheme, a user's own raises or makes no phases, or one
            learns from the validation split.
    """
    phases = (_own if settings.is_own else _SCHEMES[settings.scheme])(recipe, settings, cast)
    for phase in phases:
        read = [edit.table for edit in phase.start if isinstance(edit, (Bootstrap, Relabel, Split, Subset))]
        if "validation" in (phase.data if phase.moves else "", *read):
            raise ConfigError(
                f"{phase.name} learns from the validation split, by which networks are selected",
                hint="let it learn from train, or from a table of `data.tables`",
            )
    return with_initiation(phases, recipe)


def _own(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    name, options = settings.scheme, arguments_of(settings.own_options())
    hint = "a scheme returns a list of phases, one of which changes the model `student`"
    try:
        phases = own_scheme(name).function(recipe, cast, **options)
    except EdgekdError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"scheme {name} failed: {blame(error)}", hint="look at its `options:`") from error
    if not isinstance(phases, list) or not all(isinstance(phase, Phase) for phase in phases):
        raise ConfigError(f"scheme {name} gave no list of phases", hint=hint)
    changed = {m for phase in phases for m in (*phase.learners(), *(m for edit in phase.start for m in edit.touches))}
    if "student" not in changed:
        raise ConfigError(f"scheme {name} teaches nobody named `student`", hint=hint)
    return phases


def _offline(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    return [recipe.taught("student", "teacher", "offline")]


def _online(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    return online(recipe, cast.beside, best=settings.goes_on == "best")


def _collaborative(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    return collaborative(recipe, cast.beside, settings.collaborative, best=settings.goes_on == "best")


def _self(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    return self_distillation(
        recipe,
        generations=settings.further_generations(),
        snapshot_epochs=settings.snapshot_epochs,
        virtual=settings.virtual_teacher,
    )


def _multi_teacher(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    epochs = dict.fromkeys(cast.beside, recipe.epochs)
    if isinstance(settings.teachers, tuple):
        listed = zip(cast.beside, settings.teachers, strict=True)
        epochs = {name: item.passes(recipe.epochs) for name, item in listed}
    given = {"teacher": 0} if cast.teacher else {}
    return multi_teacher(recipe, given | epochs, weights=settings.teacher_weights, bootstrap=settings.bootstrap)


def _assistant(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    listed = zip(cast.beside, settings.assistants, strict=True)
    return assistant(recipe, {name: item.passes(recipe.epochs) for name, item in listed})


def _student_friendly(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    return student_friendly(recipe, settings.student_friendly, cast.stages())


def _label_free(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    return label_free(recipe, transfer=settings.label_free.transfer)


def _privileged(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    if settings.model_fields_set & {"knowledge", "task_weight"}:
        return privileged(recipe)
    return privileged(recipe, imitation=settings.privileged.imitation, temperature=settings.privileged.temperature)


def _cross_modal(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    pairs = settings.cross_modal.pairs
    return cross_modal(recipe, pairs=pairs, columns=cast.columns(pairs))


def _expansion(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    own = settings.expansion
    return expansion(recipe, rounds=own.rounds, unlabelled=own.unlabelled, confident=own.confident, soft=own.soft)


def _adaptation(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    own = settings.adaptation
    return adaptation(recipe, domain=own.domain, confident=own.confident, rounds=own.rounds)


def _adversarial(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    own = settings.adversarial
    made = Critic(recipe.heads[0].output, own.layers, own.width)
    return adversarial(recipe, critic=_adam(own.lr), layers=own.layers, weight=own.weight, start=(made,))


def _multi_task(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    listed = settings.multi_task.teachers
    epochs = {head: item.passes(recipe.epochs) for head, item in listed.items()}
    return multi_task(recipe, {head: specialist(head) for head in listed}, epochs)


def _federated(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    own = settings.federated
    return federated(
        recipe,
        clients=own.clients if isinstance(own.clients, int) else len(own.clients),
        rounds=own.rounds,
        public=own.public,
        concentration=own.concentration,
        least=own.least,
        client_epochs=own.client_epochs,
        share_weights=isinstance(own.clients, int),
        temperature=own.temperature,
    )


def _data_free(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    own = settings.data_free
    wishes = Wishes(
        own.one_hot,
        own.entropy,
        own.activation,
        own.features,
        own.statistics,
        cast.batchnorms() if own.statistics else (),
        own.disagreement,
    )
    return data_free(
        recipe,
        generator=_adam(own.lr),
        noise=(own.noise,),
        rows=own.rows,
        wishes=wishes,
        every=own.every,
        start=(Generator(own.noise, own.width),),
    )


def _adam(lr: float) -> Optim:
    return Optim("adam", lr=lr)


_SCHEMES: dict[str, _Make] = {
    "offline": _offline,
    "online": _online,
    "self": _self,
    "collaborative": _collaborative,
    "multi_teacher": _multi_teacher,
    "assistant": _assistant,
    "student_friendly": _student_friendly,
    "label_free": _label_free,
    "privileged": _privileged,
    "cross_modal": _cross_modal,
    "expansion": _expansion,
    "adaptation": _adaptation,
    "adversarial": _adversarial,
    "multi_task": _multi_task,
    "federated": _federated,
    "data_free": _data_free,
}
