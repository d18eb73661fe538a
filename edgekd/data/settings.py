"""The options of a data set: exactly one source, how it is split, and how its samples are prepared."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from edgekd.config import Settings
from edgekd.config.settings import did_you_mean

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
DataPath = Annotated[Path, Field(strict=False)]
Names = tuple[Annotated[str, Field(min_length=1)], ...]


class DigitsSettings(Settings):
    """scikit-learn's handwritten digits, 8x8 pixels: 1000 to train, 797 to test, split once and for all."""


class ParquetSettings(Settings):
    """A folder of Parquet files in the layout of public data hubs."""

    path: DataPath
    """Folder with train*.parquet, and if there are any test*.parquet and validation*.parquet; relative to this file."""
    image: str
    """Column of the encoded images: struct<bytes, path>, or binary."""
    label: str | None = None
    """Column of the labels: integers, sorted texts become integers, floats are real targets; without it, unlabelled."""


class FolderSettings(Settings):
    """A folder of image files."""

    path: DataPath
    """Folder with train/<class>/*, test/<class>/* and validation/<class>/*; or <class>/*; or unlabelled images."""


class NpzSettings(Settings):
    """NumPy archives of arrays whose first axis counts samples."""

    path: DataPath
    """Folder with train.npz, and if there are any test.npz and validation.npz; or one .npz file."""
    inputs: Annotated[Names, Field(min_length=1)] = ("x",)
    """Names of the input arrays. A uint8 array of four axes is images."""
    targets: Names = ("y",)
    """Names of the target arrays, integers for classes, floats for real targets; [] is unlabelled."""
    layout: Literal["nchw", "nhwc"] | None = None
    """Order of the axes of input arrays that have four: samples, channels, height, width, or channels last. Without it
    they are nchw, and what looks like nhwc is refused."""

    @model_validator(mode="after")
    def _each_name_once(self) -> NpzSettings:
        for field, names in (("inputs", self.inputs), ("targets", self.targets)):
            if len(set(names)) != len(names):
                raise ValueError(f"{field} names an array twice | name each array once")
        return self


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


class SourceSettings(Settings):
    """Where samples come from: exactly one of digits, parquet, folder and npz."""

    digits: DigitsSettings | None = None
    """scikit-learn's digits, written `digits: {}`: 1797 images of 8x8, pixels / 16."""
    parquet: ParquetSettings | None = None
    """Images in Parquet files."""
    folder: FolderSettings | None = None
    """Image files in folders."""
    npz: NpzSettings | None = None
    """Arrays in NumPy archives."""

    @property
    def source(self) -> str:
        """Name of the one source that is given."""
        return next(name for name in _SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_source(self) -> SourceSettings:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"names no data source | give one of: {', '.join(_SOURCES)}; e.g. `digits: {{}}`")
        if len(given) > 1:
            raise ValueError(f"names {len(given)} data sources: {', '.join(given)} | keep one of them")
        return self


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


class DataSettings(SourceSettings):
    """A data set: exactly one of digits, parquet, folder and npz."""

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
    channels: Literal[1, 3] = 3
    """Images of parquet and folder become grey (1) or RGB (3)."""
    size: tuple[Count, Count] | None = None
    """Height and width that images of parquet and folder are resized to; without it all must have one size."""
    classes: Count | None = None
    """Number of classes; without it, one more than the largest label of the training split."""
    licence: str | None = None
    """Licence of the data, for the report."""

    stream: Literal["auto", "always", "never"] = "auto"
    """Decode images of parquet and folder batch by batch instead of keeping them decoded: auto streams a split that
    would take more memory than `memory` allows. The results are the same; npz and digits always stay in memory."""
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
        if self.stream == "always" and (self.digits is not None or self.npz is not None):
            raise ValueError("stream: always is for parquet and folder only | remove `stream:`")
        if self.size is not None and (self.digits is not None or self.npz is not None):
            raise ValueError("size is for parquet and folder only | remove `size:`")
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


_SOURCES = ("digits", "parquet", "folder", "npz")
