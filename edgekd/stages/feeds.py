"""How samples reach networks, files and builds: as networks see them, or as raw frames; and what a device is told."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch

from edgekd.data.settings import DataSettings
from edgekd.data.sources import IMAGE_SOURCES
from edgekd.data.table import Rows
from edgekd.errors import ConfigError
from edgekd.export.parity import Arrays
from edgekd.export.preprocessing import raw_frames
from edgekd.stages.context import Common
from edgekd.stages.networks import CPU
from edgekd.train.feed import to_input
from edgekd.train.world import World

_AXES = {1: "N", 2: "NC", 3: "NCL", 4: "NCHW", 5: "NCDHW"}
_RULE = "(x * scale - mean) / std, per index of the axis C"


def feeds_of(world: World, names: Iterable[str], rows: Rows, raw: Collection[str] = ()) -> Arrays:
    """Named inputs of some rows as networks see them; those in `raw` as frames, uint8 (N, H, W, C)."""
    found = {}
    for name in names:
        x = rows.inputs[name]
        seen = to_input(world, name, x, CPU).contiguous().numpy() if name not in raw else raw_frames(x.cpu().numpy())
        found[name] = seen
    return found


def raw_images(common: Common) -> tuple[str, ...]:
    """Inputs of the data that can be raw frames: images of uint8.

    Raises:
        ConfigError: there is none.
    """
    inputs = common.data.load("train").inputs
    found = tuple(name for name, x in inputs.items() if x.dtype == torch.uint8 and x.dim() == 4)
    if not found:
        shown = {name: f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for name, x in inputs.items()}
        kinds = ", ".join(f"{name} is {kind}" for name, kind in shown.items())
        raise ConfigError(
            f"raw_input: no input of the data is an image of uint8 ({kinds})",
            hint="remove `raw_input`, or give the data as images in files, or npz with uint8 (N, C, H, W)",
        )
    return found


def preparation(common: Common, names: Iterable[str], *, raw: bool) -> dict[str, dict[str, Any]]:
    """For each input all that a device must do to a sample before a file takes it."""
    settings, train = common.data.settings, common.data.load("train").inputs
    frames = raw_images(common) if raw else ()
    found = {}
    for name in names:
        x, normalization = train[name], common.data.normalization()[name]
        facts: dict[str, Any] = {
            "dtype": "uint8" if name in frames else "float32",
            "layout": "NHWC" if name in frames else _AXES.get(x.dim(), "N"),
            "shape": _sample_shape(x.shape, frame=name in frames),
            "scale": normalization.scale,
            "mean": list(normalization.mean),
            "std": list(normalization.std),
            "normalization": _RULE,
            "normalized_by": "the file" if name in frames else "the caller",
        }
        if x.dtype == torch.uint8:
            decoded = settings.source in IMAGE_SOURCES
            facts |= {"pixels": [0, 255], "channels": _channels(x.shape[1], decoded=decoded)}
            facts["background"] = settings.background if decoded else None
            facts["resize"] = _resize(settings) if decoded and settings.size is not None else None
        elif settings.source == "digits":
            facts |= {"pixels": [0, 1], "channels": "grey", "resize": None}
        found[name] = facts
    return found


def _resize(settings: DataSettings) -> dict[str, Any]:
    """What readers/images.py does where `data.size` is given."""
    return {
        "filter": settings.interpolation,
        "antialias": settings.interpolation != "nearest",
        "fit": settings.fit,
        "keep_aspect": settings.fit != "stretch",
        "crop": settings.crop_share if settings.fit == "crop" else None,
    }


def _sample_shape(shape: torch.Size, *, frame: bool) -> list[int]:
    """Without the batch axis, in the order in which the file takes it."""
    own = list(shape[1:])
    return [*own[1:], own[0]] if frame else own


def _channels(count: int, *, decoded: bool) -> str | None:
    """Order of the channels; None where only whoever wrote the arrays knows."""
    return "grey" if count == 1 else "RGB" if decoded else None
