"""From the options of a pipeline file to the phases of its scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.config.signature import arguments_of
from edgekd.distill.own import own_scheme
from edgekd.distill.schemes.assistant import assistant
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.peers import collaborative, online
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.distill.settings import DistillationSettings
from edgekd.distill.term_settings import Pair
from edgekd.errors import ConfigError, EdgekdError
from edgekd.models.imports import blame
from edgekd.train.world import Phase


@dataclass(frozen=True)
class Cast:
    """The models there are when a scheme starts, besides `student`.

    Attributes:
        beside: those that are built beside the student, see `DistillationSettings.beside`.
        teacher: whether there is a given `teacher`.
        stages: finds pairs of stages of student and teacher, for the scheme that joins them.
    """

    beside: Sequence[str] = ()
    teacher: bool = True
    stages: Callable[[], Sequence[Pair]] = tuple


_Make = Callable[[Recipe, DistillationSettings, Cast], list[Phase]]


def phases_of(recipe: Recipe, settings: DistillationSettings, cast: Cast) -> list[Phase]:
    """The phases of the scheme that the settings name.

    Raises:
        ConfigError: the data or the networks do not fit the scheme, or a user's own raises or makes no phases.
    """
    return (_own if settings.is_own else _SCHEMES[settings.scheme])(recipe, settings, cast)


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


_SCHEMES: dict[str, _Make] = {
    "offline": _offline,
    "online": _online,
    "self": _self,
    "collaborative": _collaborative,
    "multi_teacher": _multi_teacher,
    "assistant": _assistant,
    "student_friendly": _student_friendly,
}
