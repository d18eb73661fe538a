"""federated: clients keep their data to themselves; what they say of public samples teaches the server."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.distill.schemes.recipe import Recipe
from edgekd.distill.schemes.soft import soft_terms
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.edits import Average, Relabel, Split
from edgekd.train.world import Copy, Edit, Move, Phase

_SAID = "consensus"
_COMMON = "public rows with the consensus"  # a name that no table of a pipeline file can have
STUDENT = "student"


def federated(
    recipe: Recipe,
    *,
    clients: int = 5,
    rounds: int = 1,
    private: str = "train",
    public: str = "public",
    concentration: float | None = None,
    least: int = 1,
    client_epochs: int | None = None,
    share_weights: bool = True,
    temperature: float = 1.0,
) -> list[Phase]:
    """Rounds of: every client learns on rows of its own, their mean output on public rows teaches the student.

    With `share_weights` clients start as copies of the student, which starts each lesson as their average (FedDF, Lin
    et al. 2020). Without, client_0, client_1, .. are models of the world, of whatever kind, which learn from the common
    word too (FedMD, Li and Wang 2019).

    Args:
        recipe: how all learn; its epochs are those of each lesson.
        clients: how many.
        rounds: how often.
        private: the table that is dealt out to the clients.
        public: the table that all see; its labels are not looked at.
        concentration: how unevenly classes are dealt out (edits.Split); without it all alike.
        least: rows that each client has at least.
        client_epochs: of each client in each round, by default as many as of a lesson.
        share_weights: see above.
        temperature: of kd to the mean output.

    Raises:
        ConfigError: there are no targets, or no classes to deal rows out by, or samples are mixed.
    """
    recipe.needs_targets("scheme federated")
    recipe.needs_whole_samples("scheme federated learns what clients say of whole samples", "remove mixup and cutmix")
    names = tuple(f"client_{i}" for i in range(clients))
    passes = recipe.epochs if client_epochs is None else client_epochs
    column = "" if concentration is None else _column(recipe)
    phases = [Phase("split", start=(Split(private, tuple(map(_rows, names)), concentration, column, least),))]
    for number in range(rounds):
        for name in names:
            move = Move({name: recipe.optim}, recipe.task(name, 1.0))
            start = (Copy(STUDENT, name),) if share_weights else ()
            phases.append(Phase(f"{name} {number}", (move,), passes, start, _rows(name)))
        edits: tuple[Edit, ...] = _consensus(names, recipe.heads, public)
        for learner in (STUDENT,) if share_weights else (STUDENT, *names):
            terms = soft_terms(learner, lambda head: f"{_SAID}_{head.output}", recipe.heads, temperature)
            first = (Average(names, STUDENT),) if share_weights else ()
            start = (*first, *edits) if learner == STUDENT else ()
            phases.append(recipe.phase(f"lesson of {learner} {number}", learner, terms, start=start, data=_COMMON))
    return phases


def _rows(client: str) -> str:
    return f"rows of {client}"


def _consensus(names: tuple[str, ...], heads: Sequence[HeadSettings], public: str) -> tuple[Relabel, ...]:
    """Edits that write the clients' mean output of every head beside the public samples."""
    return tuple(
        Relabel(
            tuple(f"{name}[{head.output}]" for name in names),
            _COMMON if number else public,
            _COMMON,
            f"{_SAID}_{head.output}",
            soft=True,
        )
        for number, head in enumerate(heads)
    )


def _column(recipe: Recipe) -> str:
    """The column of classes by which rows are dealt out."""
    classes = [head.target for head in recipe.heads if head.task == "classification" and head.target is not None]
    if not classes:
        raise ConfigError(
            "rows cannot be dealt out by class: no head is a classification", hint="set concentration: null"
        )
    return classes[0]
