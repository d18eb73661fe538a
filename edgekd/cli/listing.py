"""edgekd list WHAT: what may stand in a pipeline file, with every option and its help."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import ConfigError

Rows = list[dict[str, Any]]


def list_(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="stages, data, train, targets, gates, pipeline, knowledge, schemes, models, runtimes or tasks.",
        ),
    ],
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """List what there is, with every option."""
    if what not in LISTS:
        from edgekd.config.settings import did_you_mean

        raise ConfigError(f"list {what}: there is no such list", hint=did_you_mean(what, LISTS))
    rows = LISTS[what]()
    if json_:
        print_json(rows)
        return
    for row in rows:
        help_ = row.get("help") or row.get("runtime") or ""
        typer.echo(f"{row['name']:<14} {help_}".rstrip())
        for option in row.get("options", []):
            default = "required" if option["required"] else f"default {option['default']}"
            typer.echo(f"    {option['name']}: {option['type']} ({default})  {option['help']}")


def _stages() -> Rows:
    from edgekd.config import describe
    from edgekd.stages.kinds import KINDS, WRITABLE

    return [_described(name, KINDS[name].settings, describe) for name in WRITABLE]


def _knowledge() -> Rows:
    from edgekd.config import describe
    from edgekd.config.entry_points import KNOWLEDGE
    from edgekd.config.settings import nested
    from edgekd.distill.knowledge_settings import KNOWLEDGES, KnowledgeSettings

    fields = {name: KnowledgeSettings.model_fields[name] for name in KNOWLEDGES}.items()
    rows = [_described(name, inner, describe) for name, field in fields for inner in nested(field.annotation)]
    return rows + _offered(KNOWLEDGE, _own_knowledge, KNOWLEDGES)


def _offered(group: str, describe: Callable[[str], dict[str, Any]], built_in: Collection[str]) -> Rows:
    """What installed packages offer, without built-in names, which cannot be taken.

    One that does not import is listed with the reason.
    """
    from edgekd.config.entry_points import offered

    rows: Rows = []
    for name, reference in sorted((key, value) for key, value in offered(group).items() if key not in built_in):
        try:
            row = describe(name)
        except ConfigError as error:
            row = {"help": f"does not work: {error.message}", "options": []}
        rows.append({"name": name, **row, "from": reference})
    return rows


def _own_knowledge(name: str) -> dict[str, Any]:
    from edgekd.config import describe
    from edgekd.distill.term_settings import FeatureSettings, TermSettings
    from edgekd.train.knowledge import knowledge_named, own_options

    found = knowledge_named(name)
    kind = FeatureSettings if found.features else TermSettings
    help_ = (found.function.__doc__ or "").strip().partition("\n")[0]
    return {"help": help_, "options": describe(kind) + describe(own_options(name))}


def _own_scheme(name: str) -> dict[str, Any]:
    from edgekd.config import describe
    from edgekd.distill.own import own_scheme

    found = own_scheme(name)
    options = [{**row, "name": f"options.{row['name']}"} for row in describe(found.options)]
    return {"help": found.facts.help, "options": options}


def _blocks(name: str, module: str, attribute: str) -> Callable[[], Rows]:
    """A block of a pipeline file, and the blocks inside it, each with its options."""

    def rows() -> Rows:
        import importlib

        from edgekd.config import describe
        from edgekd.config.settings import nested

        settings = getattr(importlib.import_module(module), attribute)
        return [_described(name, settings, describe)] + [
            _described(f"{name}.{key}", inner, describe)
            for key, field in settings.model_fields.items()
            for inner in nested(field.annotation)
        ]

    return rows


def _described(name: str, settings: Any, describe: Callable[..., Any]) -> dict[str, Any]:
    return {"name": name, "help": " ".join((settings.__doc__ or "").split()), "options": describe(settings)}


def _schemes() -> Rows:
    from edgekd.config import describe
    from edgekd.config.entry_points import SCHEMES as ENTRY_POINTS
    from edgekd.distill.settings import SCHEMES, DistillationSettings

    known = {row["name"]: row for row in describe(DistillationSettings)}
    rows: Rows = []
    for name, facts in SCHEMES.items():
        options = []
        for option in (known[option] for option in facts.options):
            inside = [row for fields in option.get("fields", {}).values() for row in fields]
            # The options of a block follow it, each with its own default.
            options.append({**option, "default": {}} if isinstance(option.get("default"), dict) else option)
            options += [{**row, "name": f"{option['name']}.{row['name']}"} for row in inside]
        rows.append({"name": name, "help": facts.help, "options": options})
    return rows + _offered(ENTRY_POINTS, _own_scheme, SCHEMES)


def _models() -> Rows:
    from edgekd.models.names import ZOO

    return [{"name": name, "help": reference} for name, reference in ZOO.items()]


def _runtimes() -> Rows:
    from edgekd.runtimes.registry import RUNTIMES, runtime

    return [{"name": name, "help": f"precisions: {', '.join(runtime(name).precisions)}"} for name in RUNTIMES]


def _tasks() -> Rows:
    from edgekd.tasks import TASKS

    words = {"classification": "cross-entropy, KD on logits, top-1 accuracy", "regression": "squared error, MAE"}
    return [{"name": name, "help": words[name]} for name in TASKS]


LISTS: dict[str, Callable[[], Rows]] = {
    "knowledge": _knowledge,
    "schemes": _schemes,
    "models": _models,
    "runtimes": _runtimes,
    "stages": _stages,
    "data": _blocks("data", "edgekd.data.settings", "DataSettings"),
    "train": _blocks("train", "edgekd.train.settings", "TrainSettings"),
    "targets": _blocks("targets", "edgekd.stages.settings", "TargetSettings"),
    "gates": _blocks("gates", "edgekd.pipeline.gates", "GateSettings"),
    "pipeline": _blocks("pipeline", "edgekd.pipeline.schema", "PipelineSettings"),
    "tasks": _tasks,
}
