"""What is wrong with a target of a pipeline file, seen beside the stages of that file (torch-free)."""

from __future__ import annotations

from edgekd.config import Problem
from edgekd.config.tree import Location
from edgekd.runtimes.registry import FLAVOURS
from edgekd.stages.settings import TargetSettings


def target_problems(name: str, target: TargetSettings, stages: set[str], location: Location) -> list[Problem]:
    """Problems of the target of this name, which stands at `location` in a file with these stages."""
    problems = []
    if "int8" in target.precision and "quantize" not in stages and "compile" in stages:
        words = f"target {name} asks for int8, and nothing is quantized"
        problems.append(Problem((*location, "precision"), words, "add a `quantize` stage"))
    able = list(FLAVOURS[target.runtime])
    lacking = [precision for precision in target.precision if precision not in able]
    if lacking:
        words = f"{target.runtime} builds {', '.join(able[:-1])} and {able[-1]} here, not {lacking[0]}"
        others = ", ".join(name for name, flavours in FLAVOURS.items() if lacking[0] in flavours)
        problems.append(Problem((*location, "precision"), words, f"leave {lacking[0]} to {others}"))
    return problems
