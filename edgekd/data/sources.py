"""Where a data set's samples come from, one class per kind of source, and how its images are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from edgekd.config import Settings

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LEARNING_SPLITS = SPLITS[:2]
"""Those that training, calibration and choices see."""

Count = Annotated[int, Field(gt=0)]
DataPath = Annotated[Path, Field(strict=False)]
Name = Annotated[str, Field(min_length=1)]
Names = tuple[Name, ...]


class DigitsSettings(Settings):
    """scikit-learn's handwritten digits, 8x8 pixels: 1000 to train, 797 to test, split once and for all."""


class ParquetSettings(Settings):
    """A folder of Parquet files in the layout of public data hubs."""

    path: DataPath
    """Folder with train*.parquet, and if there are any test*.parquet and val*.parquet; or one .parquet file."""
    image: str
    """Column of the encoded images: struct<bytes, path>, or binary."""
    label: str | None = None
    """Column of the labels: integers, sorted texts become integers, floats are real targets; without it, unlabelled."""


class FolderSettings(Settings):
    """A folder of image files."""

    path: DataPath
    """Folder with train/<class>/*, test/<class>/* and val/<class>/*; or <class>/*; or unlabelled images."""
    outside: bool = False
    """Whether symbolic links may lead out of the folder."""


class NpzSettings(Settings):
    """NumPy archives of arrays whose first axis counts samples."""

    path: DataPath
    """Folder with train.npz, and if there are any test.npz and validation.npz; or one .npz file."""
    inputs: Annotated[Names, Field(min_length=1)] = ("x",)
    """Names of the input arrays. A uint8 array of four axes is images in the order samples, channels, height, width."""
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


class CsvSettings(Settings):
    """CSV files with a header, one row per image. `.tsv` files are separated by tabs, all others by commas."""

    path: DataPath
    """One .csv file; or a folder with train.csv, and if there are any test.csv and validation.csv."""
    image: Name = "path"
    """Column of the images' paths, relative to the folder of the CSV file."""
    label: Name | None = "label"
    """Column of the labels: integers are classes, other numbers real targets, texts are sorted; null is unlabelled."""
    split: Name | None = None
    """Column that says train, validation or test, of one .csv file."""
    outside: bool = False
    """Whether paths and links may lead out of the folder of the CSV file."""

    @model_validator(mode="after")
    def _columns_apart(self) -> CsvSettings:
        names = [name for name in (self.image, self.label, self.split) if name is not None]
        if len(set(names)) != len(names):
            raise ValueError("image, label and split name a column twice | give each its own")
        return self


class WebDatasetSettings(Settings):
    """Tar files: consecutive files of one name up to the first dot are a sample, e.g. `a/01.jpg` and `a/01.cls`."""

    path: DataPath
    """Folder with train*.tar, and if there are any test*.tar and val*.tar; or with other *.tar; or one .tar file."""
    image: Name | None = None
    """Extension of the images, e.g. `jpg`; without it the first file of a sample that has the extension of an image."""
    label: Name | None = "cls"
    """Extension of the labels, files of an integer or a text; `json.NAME` is a field of a .json; null is unlabelled."""


class HuggingFaceSettings(Settings):
    """What `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote. The library itself is not needed."""

    path: DataPath
    """Folder with dataset_dict.json or state.json."""
    image: Name = "image"
    """Column of the images, a feature `Image`."""
    label: Name | None = "label"
    """Column of the labels: a ClassLabel with its names, integers, texts or real numbers; null is unlabelled."""


class ImageSettings(Settings):
    """How encoded images become arrays of one kind, and what becomes of those that are broken."""

    channels: Literal[1, 3] = 3
    """Images become grey (1) or RGB (3)."""
    size: tuple[Count, Count] | None = None
    """Height and width that images are brought to; without it all must have one size."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How: `stretch` to it; scale to cover it, and cut the middle out (`crop`); or scale to fit inside, the rest black
    (`pad`)."""
    crop_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """With `fit: crop`, `size` as a share of what the image is scaled to cover: 0.875 is resize to 256, crop to 224."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Filter of the resizing; all but nearest are antialiased."""
    background: Annotated[int, Field(ge=0, le=255)] = 255
    """Grey level behind transparent pixels: 255 is white."""
    max_pixels: Count = 89_478_485
    """An image of more pixels counts as broken: it is refused before memory is taken for it."""
    skip_broken: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a split's images that may be broken: they are left out, and the run says which; more is an error."""


class SourceSettings(Settings):
    """Where samples come from: exactly one of them."""

    digits: DigitsSettings | None = None
    """scikit-learn's digits, written `digits: {}`: 1797 images of 8x8, pixels / 16."""
    parquet: ParquetSettings | None = None
    """Images in Parquet files."""
    folder: FolderSettings | None = None
    """Image files in folders."""
    npz: NpzSettings | None = None
    """Arrays in NumPy archives."""
    csv: CsvSettings | None = None
    """Image files that a table of paths and labels names."""
    webdataset: WebDatasetSettings | None = None
    """Images in tar files, in the layout of WebDataset."""
    huggingface: HuggingFaceSettings | None = None
    """Images in a folder that `save_to_disk` of Hugging Face's `datasets` wrote."""

    @property
    def source(self) -> str:
        """Name of the one source that is given."""
        return next(name for name in SOURCES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_source(self) -> SourceSettings:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if not given:
            raise ValueError(f"names no data source | give one of: {', '.join(SOURCES)}; e.g. `digits: {{}}`")
        if len(given) > 1:
            raise ValueError(f"names {len(given)} data sources: {', '.join(given)} | keep one of them")
        return self


SOURCES = ("digits", "parquet", "folder", "npz", "csv", "webdataset", "huggingface")
IMAGE_SOURCES = ("parquet", "folder", "csv", "webdataset", "huggingface")
"""Sources of encoded images."""
