"""From the options of a pipeline file to the phases of its scheme."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekd.distill.knowledge_settings import Pair
from edgekd.distill.schemes.assistant import assistant
from edgekd.distill.schemes.multi_teacher import multi_teacher
from edgekd.distill.schemes.peers import collaborative, online
from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.self_distillation import self_distillation
from edgekd.distill.schemes.student_friendly import student_friendly
from edgekd.distill.settings import DistillationSettings, Scheme
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
    """The phases of the scheme that the settings name."""
    return _SCHEMES[settings.scheme](recipe, settings, cast)


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


_SCHEMES: dict[Scheme, _Make] = {
    "offline": _offline,
    "online": _online,
    "self": _self,
    "collaborative": _collaborative,
    "multi_teacher": _multi_teacher,
    "assistant": _assistant,
    "student_friendly": _student_friendly,
}
