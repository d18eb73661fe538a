"""Pipeline files as data: YAML with positions, typed settings, and errors that say where and what instead."""

from edgekd.config.settings import Settings, describe, validate
from edgekd.config.tree import Problem, Tree, load_tree, parse_tree, raise_problems

__all__ = ["Problem", "Settings", "Tree", "describe", "load_tree", "parse_tree", "raise_problems", "validate"]
