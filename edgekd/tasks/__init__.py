"""Tasks (heads): what one output of a network is trained for, how it is scored, and how a teacher speaks through it."""

from edgekd.tasks.settings import TASKS, HeadSettings, heads_of

__all__ = ["TASKS", "HeadSettings", "heads_of"]
