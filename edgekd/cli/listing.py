"""edgekd list WHAT: stages, models, knowledge, schemes, runtimes, tasks, with every option and its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from edgekd.cli.shared import JsonOption, LogFormatOption, QuietOption, print_json
from edgekd.errors import ConfigError

Rows = list[dict[str, Any]]


def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="knowledge, schemes, models, runtimes, stages or tasks.")],
    json_: JsonOption = False,
    log_format: LogFormatOption = "text",
    quiet: QuietOption = False,
) -> None:
    """List what there is, with every option."""
    if what not in _LISTS:
        from edgekd.config.settings import did_you_mean

        raise ConfigError(f"list {what}: there is no such list", hint=did_you_mean(what, _LISTS))
    rows = _LISTS[what]()
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
    from edgekd.distill.settings import KdSettings, MseLogitsSettings

    return [_described("kd", KdSettings, describe), _described("mse_logits", MseLogitsSettings, describe)]


def _described(name: str, settings: Any, describe: Callable[..., Any]) -> dict[str, Any]:
    return {"name": name, "help": " ".join((settings.__doc__ or "").split()), "options": describe(settings)}


def _schemes() -> Rows:
    from edgekd.distill.settings import SCHEMES

    return [{"name": name, "help": "a frozen teacher teaches the student (Hinton et al. 2015)"} for name in SCHEMES]


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


_LISTS: dict[str, Callable[[], Rows]] = {
    "knowledge": _knowledge,
    "schemes": _schemes,
    "models": _models,
    "runtimes": _runtimes,
    "stages": _stages,
    "tasks": _tasks,
}
