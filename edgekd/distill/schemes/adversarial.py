"""adversarial: a critic learns to tell student from teacher, and the student to be taken for the teacher."""

from __future__ import annotations

from edgekd.distill.schemes.recipe import Recipe, Start
from edgekd.distill.term_settings import Pair
from edgekd.train.world import Move, Optim, Phase, Term


def adversarial(
    recipe: Recipe, *, critic: Optim, layers: Pair | None = None, weight: float = 0.1, start: Start = ()
) -> list[Phase]:
    """One phase: the model `critic` and the student learn by turns (Xu et al. 2018; Wang et al. 2018, KDGAN).

    Args:
        recipe: how the student learns, and what beside the critic's word.
        critic: how the critic learns, which gives a logit that is high for the teacher.
        layers: of student and teacher, whose outputs of one shape the critic sees; without them it sees the first head.
        weight: of the critic's word in the student's loss.
        start: edits before, such as the one that makes the critic (made.Critic).
    """
    place = f"[{recipe.heads[0].output}]"
    student = f"student.{layers[0]}" if layers else f"student{place}"
    teacher = f"teacher.{layers[1]}" if layers else f"teacher{place}"
    tell = (
        Term("real", f"critic({teacher})", label="critic of teacher"),
        Term("fake", f"critic({student})", label="critic of student"),
    )
    fool = Term("real", f"critic({student})", None, weight, label="adversarial")
    learned = (*recipe.task("student"), *recipe.teaching("student", "teacher"), fool)
    moves = (Move({"critic": critic}, tell), Move({"student": recipe.optim}, learned))
    return [Phase("adversarial", moves, recipe.epochs, start, watch=recipe.watch("student"))]
