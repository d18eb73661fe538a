"""What schemes and knowledges of your own are made of, in one place (docs/extending.md)."""

from edgekd.distill.own import scheme
from edgekd.distill.schemes.choose import Cast
from edgekd.distill.schemes.recipe import Recipe
from edgekd.errors import ConfigError
from edgekd.train.edits import Average, Best, Bootstrap, Noise, Relabel, Split, Subset
from edgekd.train.knowledge import knowledge, register
from edgekd.train.world import Copy, Follow, Fresh, Model, Move, Optim, Phase, Term, Watch, World

__all__ = [
    "Average",
    "Best",
    "Bootstrap",
    "Cast",
    "ConfigError",
    "Copy",
    "Follow",
    "Fresh",
    "Model",
    "Move",
    "Noise",
    "Optim",
    "Phase",
    "Recipe",
    "Relabel",
    "Split",
    "Subset",
    "Term",
    "Watch",
    "World",
    "knowledge",
    "register",
    "scheme",
]
