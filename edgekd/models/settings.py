"""The options of a network in a pipeline file. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from edgekd.config.settings import Settings
from edgekd.errors import ConfigError
from edgekd.models.names import check_name


def _checked(reference: str) -> str:
    try:
        check_name(reference)
    except ConfigError as error:
        # pydantic gathers ValueErrors; what stands behind the bar becomes the hint (edgekd.config).
        raise ValueError(f"{error.message} | {error.hint}") from None
    return reference


ModelReference = Annotated[str, AfterValidator(_checked)]
"""A zoo name or "package.module:factory"; a name that the zoo does not know is refused with the nearest one."""


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("names one twice | name each input once")
    return names


Columns = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1), AfterValidator(_each_once)]
"""Names of inputs of the data."""


class ModelSettings(Settings):
    """Which network, how it is made, and the weights it starts from."""

    model: ModelReference
    """Name of a built-in network (`edgekd list models`), or `package.module:factory` of your own; the folder of the
    pipeline file is on the import path. Also `timm:resnet18`, `torchvision:resnet18`, `hf:FOLDER` of save_pretrained,
    and as a teacher an ONNX file (`file.onnx`), which ONNX Runtime runs and whose answers alone can be taught."""

    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the factory. `num_classes`, `in_channels` and `image_size` come from the data where the
    factory names them and they are not given here."""

    weights: str | None = None
    """File with the weights to start from (.safetensors, or a state dict as .pt, .pth or .bin), relative to the
    pipeline file. Without it the network starts at random."""

    inputs: Columns | None = None
    """Inputs of the data that the network takes, in the order of its forward; by default all. Arguments of forward that
    have the same names are matched by name, and a single input goes to the first argument, whatever its name."""
