"""A pipeline file: read, overridden by --set, checked as a whole; errors say file:line:column (torch-free)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from edgekd.config import Problem, Settings, Tree, load_tree, raise_problems, validate
from edgekd.config.settings import did_you_mean
from edgekd.config.tree import Location
from edgekd.data import DataSettings
from edgekd.data.settings import unknown_table
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.own import own_problems
from edgekd.distill.settings import SCHEMES
from edgekd.errors import ConfigError, EdgekdError
from edgekd.models.imports import search_beside
from edgekd.models.settings import Columns, ModelReference, ModelSettings
from edgekd.pipeline.gates import GateSettings
from edgekd.pipeline.onnx_teachers import onnx_problems
from edgekd.pipeline.overrides import apply_override
from edgekd.pipeline.target_problems import target_problems
from edgekd.stages.context import roles
from edgekd.stages.kinds import KINDS, ORDER, WRITABLE, needs_of
from edgekd.stages.settings import (
    BenchStage,
    DistillStage,
    ModelStage,
    QuantizeStage,
    TargetSettings,
    TeacherStage,
    tables_of,
)
from edgekd.tasks.settings import TaskName, heads_of
from edgekd.train.settings import TrainSettings

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
E = TypeVar("E", bound=EdgekdError)


def _checked_target(name: str) -> str:
    # No dots: the folders of builds are named <target>.<precision>.
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", name) is None:
        raise ValueError(f"{name!r} cannot name a target | use at most 32 letters, digits, `_` and `-`")
    return name


def _checked_name(name: str) -> str:
    if re.fullmatch(NAME_PATTERN, name) is None:
        rule = "use at most 64 letters, digits, `_`, `-` and `.`, no mark first"
        raise ValueError(f"{name!r} cannot name a folder | {rule}")
    return name


class PipelineSettings(Settings):
    """Everything at the top of a pipeline file but its stages."""

    name: Annotated[str, AfterValidator(_checked_name)]
    """Name of the pipeline: letters, digits, `_`, `-`, `.`; reports and the run's folder carry it."""
    seed: int = Field(default=0, ge=0)
    """All randomness comes from it."""
    task: TaskName | dict[str, TaskName] = "classification"
    """classification or regression; or, for several outputs, a mapping from each output's name to its task."""
    data: DataSettings
    """The data set."""
    train: TrainSettings = TrainSettings()
    """How networks are trained, unless a stage says otherwise."""
    model: ModelReference | None = None
    """A network to start from as it is, in place of a `teacher` stage."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory of `model`."""
    weights: str | None = None
    """File with the weights of `model`, relative to the pipeline file."""
    inputs: Columns | None = None
    """Inputs of the data that `model` takes, in the order of its forward; by default all."""
    python_path: tuple[str, ...] = ()
    """Folders, relative to this file, that networks are imported from besides the file's own folder."""
    targets: dict[Annotated[str, AfterValidator(_checked_target)], TargetSettings] = Field(default_factory=dict)
    """Devices and engines to build for, by a name of your own: letters, digits, `_` and `-`."""
    gates: tuple[GateSettings, ...] = ()
    """Budgets; a broken one ends the run with exit code 5."""

    def given(self) -> ModelStage | None:
        """The network at the top of the file, as the stage that it becomes."""
        return ModelStage(**{n: getattr(self, n) for n in ModelSettings.model_fields}) if self.model else None


@dataclass(frozen=True)
class StageEntry:
    """One stage of the file: its name and its settings."""

    name: str
    settings: Settings


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline file."""

    path: Path
    settings: PipelineSettings
    stages: tuple[StageEntry, ...]
    tree: Tree

    @property
    def roles(self) -> dict[str, str]:
        """What each network is called, by the stage that makes it."""
        return roles([stage.name for stage in self.stages])

    @property
    def base(self) -> Path:
        """The file's folder: relative paths start there, and it is on the import path."""
        return self.path.resolve().parent


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check a pipeline file with its `--set` overrides.

    Raises:
        ConfigError: every problem at once, each with its place and a hint.
    """
    tree = load_tree(path)
    if not isinstance(tree.value, dict):
        raise ConfigError(
            f"{path}:1:1: is no pipeline file", hint="start with `name:`, `data:` and `stages:`; `edgekd list stages`"
        )
    for override in overrides:
        apply_override(tree, override, known=PipelineSettings.model_fields)
    return check_tree(path, tree)


def check_tree(path: Path, tree: Tree) -> Pipeline:
    """Check what a pipeline file holds, which lies (or will lie) at a path. Raises ConfigError as `load_pipeline`."""
    top = {key: value for key, value in tree.value.items() if key != "stages"}
    settings, found = validate(PipelineSettings, top)
    problems = [_top_level(p) for p in found]
    stages, stage_problems = _stages(tree)
    if any(problem.hint == "did you mean 'stages'?" for problem in problems):
        stage_problems = []  # the key is there, only misspelt
    raise_problems(tree, [*problems, *stage_problems])
    assert settings is not None
    _extend_import_path(path, settings, tree)
    raise_problems(tree, _own(stages, tree, path.parent))
    raise_problems(tree, _whole(settings, stages, tree))
    if (given := settings.given()) is not None:
        stages.insert(0, StageEntry("model", given))
    for index, stage in enumerate(stages):
        if isinstance(stage.settings, QuantizeStage):  # what it makes depends on the targets, and so does its key
            stages[index] = StageEntry(stage.name, stage.settings.filled_in(settings.targets))
    return Pipeline(path, settings, tuple(stages), tree)


def _extend_import_path(file: Path, settings: PipelineSettings, tree: Tree) -> None:
    for index, folder in enumerate(settings.python_path):
        path = (file.resolve().parent / folder).resolve()
        if not path.is_dir():
            problem = Problem(
                ("python_path", index), f"{folder}: no such folder", "paths are relative to the pipeline file"
            )
            raise_problems(tree, [problem])
        search_beside(file.resolve().parent, path)


def _top_level(problem: Problem) -> Problem:
    """`stages` is known too: it is read apart from the rest."""
    if len(problem.location) != 1 or not problem.message.startswith("unknown key"):
        return problem
    if problem.hint.startswith("known are"):
        return Problem(problem.location, problem.message, f"{problem.hint}, stages")
    known = [*PipelineSettings.model_fields, "stages"]
    return Problem(problem.location, problem.message, did_you_mean(str(problem.location[0]), known))


def _stages(tree: Tree) -> tuple[list[StageEntry], list[Problem]]:
    """The list of stages: each a mapping with the stage's name as its one key."""
    listed = tree.value.get("stages")
    if not isinstance(listed, list) or not listed:
        return [], [Problem(("stages",), "stages must be a list of stages", "e.g. - export: {}")]
    entries: list[StageEntry] = []
    problems: list[Problem] = []
    for index, listed_item in enumerate(listed):
        location: Location = ("stages", index)
        item = {listed_item: None} if isinstance(listed_item, str) else listed_item
        if not isinstance(item, dict) or len(item) != 1:
            problems.append(Problem(location, "a stage is one name with its options", "e.g. - quantize: {weights: 8}"))
            continue
        name, options = next(iter(item.items()))
        if name not in WRITABLE:
            hint = did_you_mean(name, WRITABLE)
            problems.append(Problem((*location, name), f"unknown stage {name!r}", hint))
            continue
        filled = _with_student(tree, options) if name == "distill" else options
        settings, found = validate(KINDS[name].settings, filled, (*location, name))
        problems += [_named(problem, name) for problem in found]
        if settings is not None:
            entries.append(StageEntry(name, settings))
    return entries, problems


def _with_student(tree: Tree, options: Any) -> Any:
    """The options of `distill`, where the student is the teacher's network and nobody says so again."""
    if not isinstance(options, dict) or options.get("scheme") != "adaptation" or "student" in options:
        return options
    named = [item["teacher"] for item in tree.value["stages"] if isinstance(item, dict) and "teacher" in item]
    given = named[0] if named else tree.value
    if not isinstance(given, dict) or "model" not in given:
        return options
    return {"student": given["model"], **{key: given[key] for key in ("args", "inputs") if key in given}, **options}


def _named(problem: Problem, stage: str) -> Problem:
    """Messages speak of `distill.epochs`, not of `stages.1.distill.epochs`."""
    prefix = ".".join(str(part) for part in problem.location[:2]) + "."
    return Problem(problem.location, problem.message.replace(prefix, ""), problem.hint)


def _own(stages: Sequence[StageEntry], tree: Tree, base: Path) -> list[Problem]:
    """What is wrong with schemes and knowledges of the user's own."""
    found = []
    for stage in stages:
        if isinstance(stage.settings, (DistillStage, QuantizeStage)):
            place = ("stages", _listed(tree).index(stage.name), stage.name)
            for problem in own_problems(stage.settings, base):
                moved = Problem((*place, *problem.location), problem.message, problem.hint)
                found.append(moved)
    return found


def _whole(settings: PipelineSettings, stages: Sequence[StageEntry], tree: Tree) -> list[Problem]:
    """What only shows when the file is seen as a whole: order, missing stages, precisions, gates."""
    problems = _order(settings, stages, tree)
    names = {stage.name for stage in stages}
    if "compile" in names and not settings.targets:
        problems.append(Problem((), "compile has no targets", "add `targets: {cpu: {runtime: openvino}}`"))
    problems += onnx_problems(settings.given(), stages, _listed(tree))
    problems += _knowledge(settings, stages, tree)
    problems += _scheme(settings, stages, tree)
    for stage in stages:
        location: Location = ("stages", _listed(tree).index(stage.name), stage.name)
        unknown = [name for name in tables_of(stage.settings) if name not in settings.data.table_names]
        problems += [Problem(location, *unknown_table(name, settings.data.table_names)) for name in unknown]
        if isinstance(stage.settings, BenchStage):
            problems += [Problem((*location, "batch"), *words) for words in stage.settings.problems(settings.targets)]
        if not isinstance(stage.settings, QuantizeStage):
            continue
        problems += [Problem((*location, "relu_levels"), *w) for w in stage.settings.problems(settings.targets)]
        outputs, place = [head.output for head in heads_of(settings.task, ())], (*location, "float_outputs")
        for index, name in enumerate(stage.settings.float_outputs):
            if name not in outputs:
                words = f"no output is called {name!r}", did_you_mean(name, outputs)
                problems.append(Problem((*place, index), *words))
        taught = settings.model is not None and "distill" in names  # a network alone is no teacher of itself
        if "teacher" in stage.settings.guides and "teacher" not in names and not taught:
            missing = "there is no teacher in this pipeline"
            problems.append(Problem((*location, "guides"), missing, "write guides: [original], or add a teacher"))
    for name, target in settings.targets.items():
        location = ("targets", name)
        problems += target_problems(name, target, names, location)
    made = names | ({"model"} if settings.model is not None else set())
    for index, gate in enumerate(settings.gates):
        problems += [Problem(("gates", index), *words) for words in gate.problems(made, set(settings.targets))]
    if (settings.args or settings.weights or settings.inputs) and settings.model is None:
        key = "weights" if settings.weights else "args" if settings.args else "inputs"
        problems.append(Problem((key,), f"{key} without a model", "add `model: package.module:factory`"))
    return problems


def _order(settings: PipelineSettings, stages: Sequence[StageEntry], tree: Tree) -> list[Problem]:
    problems = []
    missed: list[tuple[str, ...]] = []
    seen: list[str] = ["model"] if settings.model is not None else []
    listed = _listed(tree)
    for index, stage in enumerate(stages):
        location: Location = ("stages", listed.index(stage.name), stage.name)
        if stage.name in seen:
            problems.append(
                Problem(("stages", index), f"the stage {stage.name!r} stands here twice", "remove one of the two")
            )
        later = [name for name in seen if ORDER.index(name) > ORDER.index(stage.name)]
        if later:
            problems.append(
                Problem(location, f"{stage.name} stands after {later[0]}", f"the order is {', '.join(WRITABLE)}")
            )
        for group in needs_of(stage.name, stage.settings):
            given = [s.name for s in stages] + seen
            if group not in missed and not any(name in given for name in group):
                missed.append(group)
                problems.append(Problem(location, *_lacking(stage, group)))
        seen.append(stage.name)
    if settings.model is not None and "teacher" in seen:
        problems.append(Problem(("model",), "`model:` and a teacher stage are both given", "keep one of them"))
    return problems


def _lacking(stage: StageEntry, group: tuple[str, ...]) -> tuple[str, str]:
    """What a stage lacks when none of a group stands before it, and what mends it."""
    wanted = " or ".join(f"`{name}`" if name != "model" else "`model:` at the top" for name in group)
    if isinstance(stage.settings, DistillStage):
        without = ", ".join(name for name, facts in SCHEMES.items() if not facts.teacher)
        words = f"distill has nothing to work on: scheme {stage.settings.scheme} learns from a teacher"
        return words, f"it needs {wanted} before it, or a scheme without a teacher: {without}"
    return f"{stage.name} has nothing to work on", f"it needs {wanted} before it"


def _listed(tree: Tree) -> list[str]:
    """Names of the stages in the order of the file."""
    return [next(iter(i)) if isinstance(i, Mapping) else i for i in tree.value["stages"]]


def _knowledge(settings: PipelineSettings, stages: Sequence[StageEntry], tree: Tree) -> list[Problem]:
    """A knowledge of classes needs a classification head, one that needs the true class whole samples."""
    tasks = {settings.task} if isinstance(settings.task, str) else set(settings.task.values())
    listed = _listed(tree)
    for stage in stages:
        if "classification" not in tasks:
            for index, item in enumerate(_taught(stage)):
                if item.of_classes:
                    location = ("stages", listed.index(stage.name), stage.name, "knowledge", index)
                    words = f"{item.name} is for classification, this task is regression"
                    return [Problem(location, words, "use mse_logits")]
        for index, item in enumerate(_taught(stage)):
            if settings.data.augment is not None and settings.data.augment.mixes and item.needs_target:
                location = ("stages", listed.index(stage.name), stage.name, "knowledge", index)
                words = f"{item.name} needs one true class, and samples are mixed"
                return [Problem(location, words, "use kd, or mix nothing")]
    return []


def _scheme(settings: PipelineSettings, stages: Sequence[StageEntry], tree: Tree) -> list[Problem]:
    """A network that moves to another domain is the teacher's; specialists know heads that there are."""
    found = [stage.settings for stage in stages if isinstance(stage.settings, DistillStage)]
    for options in found:
        place: Location = ("stages", _listed(tree).index("distill"), "distill")
        if options.scheme == "adaptation":
            named = [stage.settings for stage in stages if isinstance(stage.settings, TeacherStage)]
            given: Any = named[0] if named else settings
            own = (options.student, options.args, options.inputs)
            if given.model is not None and own != (given.model, given.args, given.inputs):
                words = f"scheme adaptation moves the teacher's own network, {given.model}"
                return [Problem((*place, "student"), words, "leave student, args and inputs out")]
        heads = [] if isinstance(settings.task, str) else list(settings.task)
        unknown = [head for head in options.multi_task.teachers if head not in heads]
        if unknown:
            hint = did_you_mean(unknown[0], heads) if heads else "name the heads: task: {first: classification, ..}"
            return [Problem((*place, "multi_task", "teachers"), f"there is no head {unknown[0]!r}", hint)]
    return []


def _taught(stage: StageEntry) -> Sequence[KnowledgeSettings]:
    return (stage.settings.knowledge or ()) if isinstance(stage.settings, (DistillStage, QuantizeStage)) else ()


def located(pipeline: Pipeline, location: Location, error: E) -> E:
    """An error with the place in the pipeline file that it is about."""
    return type(error)(f"{pipeline.tree.where(location)}: {error.message}", hint=error.hint)


def data_location(pipeline: Pipeline, error: EdgekdError) -> Location:
    """Where in `data:` an error belongs: its message may begin with an address, as in `data.npz.path: ..`."""
    address = error.message.partition(":")[0].split(".")
    return tuple(address) if address[0] == "data" else ("data", pipeline.settings.data.source)


def stage_location(pipeline: Pipeline, entry: StageEntry, *keys: str) -> Location:
    """Where a stage's options stand; `model:` at the top has its own."""
    if entry.name == "model":
        return keys
    offset = 1 if pipeline.stages[0].name == "model" else 0
    return ("stages", pipeline.stages.index(entry) - offset, entry.name, *keys)


def network_location(pipeline: Pipeline, entry: StageEntry, place: Location = ()) -> Location:
    """Where a network of a stage is named; `place`: below the stage's options, see `networks_of`."""
    student = place[0] == "peers" if place else entry.name == "distill"
    return (*stage_location(pipeline, entry), *place, "student" if student else "model")


def network_settings(entry: StageEntry) -> ModelSettings | None:
    """The network that a stage builds, if it names one."""
    if isinstance(entry.settings, ModelSettings):
        return entry.settings
    return entry.settings.network() if isinstance(entry.settings, DistillStage) else None


def networks_of(entry: StageEntry) -> dict[Location, ModelSettings]:
    """Every network that a stage's options describe, by where below them it stands; the stage's own at ()."""
    own = network_settings(entry)
    found: dict[Location, ModelSettings] = {} if own is None else {(): own}
    return found | entry.settings.described() if isinstance(entry.settings, DistillStage) else found
