"""The options of a data set: its source, how it is split, and how its samples are prepared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from edgekd.config import Settings
from edgekd.config.settings import did_you_mean
from edgekd.data.sources import IMAGE_SOURCES, SPLITS, Count, ImageSettings, SourceSettings

Share = Annotated[float, Field(ge=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class MeanStd(Settings):
    """Mean and standard deviation per channel, for images in units of pixel / 255. One number serves all channels."""

    mean: tuple[Finite, ...]
    """Mean of each channel."""
    std: tuple[Annotated[Finite, Field(gt=0)], ...]
    """Standard deviation of each channel."""

    @model_validator(mode="after")
    def _same_length(self) -> MeanStd:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds | give one of each per channel")
        return self


RAND_AUGMENT_LEVELS = 30

Strength = Annotated[float, Field(ge=0, le=1)]
MixAlpha = Annotated[float, Field(ge=0, le=32)]


class ColorSettings(Settings):
    """Colour jitter of images of pixels 0 .. 255: a strength s draws a factor from max(0, 1 - s) .. 1 + s; 0 is off."""

    brightness: Strength = 0.0
    """Strength of a change between black and twice as bright."""
    contrast: Strength = 0.0
    """Strength of a change between the image's mean grey and twice the contrast."""
    saturation: Strength = 0.0
    """Strength of a change between grey and twice as colourful."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Largest turn of the hue either way, as a share of the whole circle."""

    @property
    def acts(self) -> bool:
        """Whether any strength is above 0."""
        return max(self.brightness, self.contrast, self.saturation, self.hue) > 0


class RandAugmentSettings(Settings):
    """RandAugment (Cubuk et al. 2020) of images of pixels 0 .. 255: operations drawn for each view, of one strength."""

    operations: Annotated[int, Field(ge=1, le=14)] = 2
    """Operations in sequence."""
    magnitude: Annotated[int, Field(ge=0, le=RAND_AUGMENT_LEVELS)] = 9
    """Strength of all operations, 0 to 30."""


class AugmentSettings(Settings):
    """Seeded augmentation: where a sample is cut out, its colours, what is erased, what it is mixed with.

    All of it is drawn by counter for each view of a sample. Crop and flip alone are (2 crop + 1)^2 places, times two.
    """

    crop: Annotated[int, Field(ge=0)] = 0
    """Pixels of zeros put around an image before a window of its own size is cut out; 0 is no crop."""
    flip: bool = False
    """Mirror left and right in half of the views."""
    color: ColorSettings | None = None
    """Colour jitter, e.g. `{brightness: 0.4, contrast: 0.4, saturation: 0.4}`."""
    rand_augment: RandAugmentSettings | None = None
    """RandAugment, `{}` for 2 operations of magnitude 9."""
    erase: Strength = 0.0
    """Share of views in which a box of 2% to 40% of the image is erased to the mean (Zhong et al. 2020)."""
    mixup: MixAlpha | None = None
    """Mix each sample with another, its share drawn from Beta(alpha, alpha) (Zhang et al. 2018), e.g. 0.2; 0 is off."""
    cutmix: MixAlpha | None = None
    """Paste a box of another image into each one, the area by Beta(alpha, alpha) (Yun et al. 2019), e.g. 1; 0 is off.
    With mixup as well, each view takes one of the two with equal odds."""
    views: Annotated[
        Annotated[Count, Tag("number")] | Annotated[Literal["all"], Tag("word")],
        Discriminator(lambda value: "word" if isinstance(value, str) else "number"),
    ] = 16
    """Views that each sample has for itself, the same for every seed. `all` draws among all views of crop and flip in
    every epoch; with any other augmentation there is no end of views, and a frozen teacher is asked live."""

    @property
    def geometric(self) -> bool:
        """Whether there is nothing but crop and flip, whose views can be enumerated."""
        colored = (self.color is not None and self.color.acts) or self.rand_augment is not None
        return not (colored or self.erase or self.mixes)

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with others."""
        return bool(self.mixup or self.cutmix)

    @property
    def per_sample(self) -> int:
        """Number of views that one sample can be given, where they are finite."""
        places = (2 * self.crop + 1) ** 2 * (2 if self.flip else 1)
        if self.views == "all":
            return places
        return min(self.views, places) if self.geometric else self.views

    @property
    def finite(self) -> bool:
        """Whether a sample has finitely many views, so that a frozen teacher's outputs can be kept."""
        return self.views != "all" or self.geometric


class LimitSettings(Settings):
    """At most so many samples of a split, drawn by seed and in proportion to the classes."""

    train: Count | None = None
    """Most samples to train on."""
    validation: Count | None = None
    """Most samples to validate on."""
    test: Count | None = None
    """Most samples to test on."""


class TableSettings(SourceSettings):
    """A further table to train on: all training rows of one source. Labels are optional."""

    limit: Count | None = None
    """At most so many rows, drawn by seed."""


UNLABELLED = "unlabelled"
"""The table of the rows whose labels `labelled` takes away."""


def _checked_table(name: str) -> str:
    if name in SPLITS:
        raise ValueError(f"{name!r} is a split of the data itself | give the table another name")
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,31}", name) is None:
        raise ValueError(f"{name!r} cannot name a table | use at most 32 letters, digits and `_`, a letter first")
    return name


TableName = Annotated[str, AfterValidator(_checked_table)]

TABLE_IDS = 1 << 40
"""Ids of samples of further tables begin here; those of the data's own splits are below."""


def first_id(table: str) -> int:
    """Id of the first sample of a further table. It follows from the name alone: other tables do not move it."""
    number = int.from_bytes(hashlib.sha256(table.encode()).digest()[:8], "big")
    return (1 + number % ((1 << 22) - 1)) * TABLE_IDS


def unknown_table(name: str, known: Collection[str]) -> tuple[str, str]:
    """What is wrong with a table that the data has not, and what mends it."""
    hint = did_you_mean(name, known) if known else f"describe it as `data: {{tables: {{{name}: {{npz: ..}}}}}}`"
    return f"the data has no table {name!r}", hint


class DataSettings(ImageSettings, SourceSettings):
    """A data set: exactly one source, how its images are read, how it is split and how samples are prepared."""

    validation: Share = 0.1
    """Share of the training samples that becomes the validation split, when the source brings none."""
    test: Share = 0.2
    """Share of all samples that becomes the test split, when the source brings none."""
    normalize: Annotated[
        Annotated[Literal["auto", "none"], Tag("word")] | Annotated[MeanStd, Tag("numbers")],
        Discriminator(lambda value: "numbers" if isinstance(value, (dict, MeanStd)) else "word"),
    ] = "auto"
    """`auto` measures mean and std on the training split; `none` leaves pixel / 255 and arrays as they are."""
    augment: AugmentSettings | None = None
    """Seeded augmentation of training images."""
    limit: LimitSettings | None = None
    """Use only a seeded part of a split."""
    labelled: Count | None = None
    """Keep the labels of so many training samples only, drawn by seed in proportion to the classes: they are the train
    split, and the others, without targets, the table `unlabelled`."""
    tables: dict[TableName, TableSettings] = Field(default_factory=dict)
    """Further tables that a scheme may train on, by name, e.g. `{unlabelled: {folder: {path: more}}}`. They have the
    inputs of the data, and are prepared like its train split."""
    classes: Count | None = None
    """Number of classes; without it, one more than the largest label of the training split."""
    licence: str | None = None
    """Licence of the data, for the report."""

    stream: Literal["auto", "always", "never"] = "auto"
    """Decode encoded images batch by batch instead of keeping them decoded: auto streams a split that would take more
    memory than `memory` allows. The results are the same; npz and digits always stay in memory."""
    memory: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the free memory (what the system calls available, within the limits of its control groups) that the
    decoded images of a split may take; a larger split is streamed."""
    workers: Annotated[int, Field(ge=0)] = 1
    """Processes that decode streamed images ahead of training; 0 decodes in the training process."""

    @property
    def table_names(self) -> tuple[str, ...]:
        """Names of all further tables."""
        return (*self.tables, *((UNLABELLED,) if self.labelled is not None else ()))

    @model_validator(mode="after")
    def _tables_apart(self) -> DataSettings:
        if self.labelled is not None and UNLABELLED in self.tables:
            raise ValueError(f"labelled makes the table {UNLABELLED!r}, and tables has one | give that another name")
        places: dict[int, str] = {}
        for name in self.tables:
            other = places.setdefault(first_id(name), name)
            if other != name:  # by chance, one in four millions
                raise ValueError(f"samples of the tables {other!r} and {name!r} would share ids | rename one of them")
        return self

    @model_validator(mode="after")
    def _fits_the_source(self) -> DataSettings:
        fields = type(self).model_fields
        changed = [name for name in _FOR_IMAGES if getattr(self, name) != fields[name].default]
        if self.stream == "always":
            changed.append("stream: always")
        if changed and self.source not in IMAGE_SOURCES:
            raise ValueError(f"{changed[0]} is for images in {_LISTED} only | remove `{changed[0].partition(':')[0]}:`")
        for name in {"fit", "crop_share", "interpolation"} & set(changed):
            if self.size is None:
                raise ValueError(f"{name} says how images are resized, and there is no size | give `size: [H, W]`")
        if "crop_share" in changed and self.fit != "crop":
            raise ValueError("crop_share is for `fit: crop` | give that, or remove `crop_share:`")
        if isinstance(self.normalize, MeanStd):
            if self.npz is not None and len(self.npz.inputs) > 1:
                raise ValueError("one mean and std cannot serve several inputs | use `normalize: auto` or `none`")
            channels = 1 if self.digits is not None else self.channels
            if self.npz is None and len(self.normalize.mean) not in (1, channels):
                given = len(self.normalize.mean)
                raise ValueError(
                    f"normalize gives {given} means for {channels} channels | give {channels}, or one for all"
                )
        return self


_FOR_IMAGES = ("size", "fit", "crop_share", "interpolation", "background", "max_pixels", "skip_broken")
_LISTED = f"{', '.join(IMAGE_SOURCES[:-1])} and {IMAGE_SOURCES[-1]}"
