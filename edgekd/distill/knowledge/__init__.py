"""Knowledge: what is transferred. Every knowledge is a pure function (student, teacher, **settings) -> scalar."""

from edgekd.distill.knowledge.response import kd, mse_logits
from edgekd.train.knowledge import register

__all__ = ["kd", "mse_logits"]

register("kd", kd)
register("mse_logits", mse_logits)
