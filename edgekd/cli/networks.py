"""How commands take a network: --model, --args, --weights; and sizes. Loads nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekd.errors import ConfigError

if TYPE_CHECKING:
    from edgekd.pipeline.compress import Network

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="REF",
        help="package.module:factory, a network of the zoo, timm:NAME, torchvision:NAME, hf:FOLDER, or file.onnx.",
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Its trained weights (.safetensors, .pt, .pth, .bin).")
]
ArgsOption = Annotated[
    list[str] | None, typer.Option("--args", metavar="K=V", help="An argument of the factory; repeatable.")
]


def network_of(model: str, args: list[str] | None, weights: Path | None, option: str = "--model") -> Network:
    """The network that the options name.

    Raises:
        ConfigError: a reference, an argument or a file that cannot be.
    """
    from edgekd.models.names import check_name
    from edgekd.pipeline.compress import Network

    try:
        check_name(model)
    except ConfigError as error:
        raise ConfigError(f"{option} {model}: {error.message}", hint=error.hint) from None
    if weights is not None and not weights.is_file():
        kind = "is a folder" if weights.is_dir() else "there is no such file"
        raise ConfigError(f"--weights {weights}: {kind}", hint="give the file with the trained weights")
    return Network(
        model, dict(_argument(text, f"{option.removesuffix('--model')}--args") for text in args or ()), weights
    )


def _argument(text: str, option: str) -> tuple[str, Any]:
    from edgekd.config import parse_tree

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError(f"--args {text}: is not of the form name=value", hint="e.g. --args width=32")
    return name, parse_tree(value, f"--args {name}").value


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `224` or `224x192`.

    Raises:
        ConfigError: it is neither.
    """
    match = re.fullmatch(r"([1-9]\d{0,4})(?:[xX]([1-9]\d{0,4}))?", text)
    if match is None:
        raise ConfigError(f"--size {text}: is no size", hint="write HEIGHTxWIDTH, e.g. --size 224x224")
    return int(match[1]), int(match[2] or match[1])
