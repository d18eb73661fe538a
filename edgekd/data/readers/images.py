"""Encoded images to one uint8 array, with Pillow, by the rules of `ImageRules`; docs/data.md states them in full.

Only the formats of `FORMATS` are tried, whatever a file is called: Pillow would hand PostScript to an interpreter.
Memory is taken after the header has said how many pixels there are.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.data.memory import physical_bytes
from edgekd.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
LARGEST_ENCODED_BYTES = 1 << 28
"""An encoded image of more bytes counts as broken."""

_VERSION = 2  # a change of what these rules make of an image raises it
_LISTED = 3  # broken images that a message names
_LOOKED_FOR = 100  # broken images after which nobody needs to know how many more there are
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What Pillow, NumPy and zipfile raise on damaged files; Pillow's UnidentifiedImageError is an OSError."""

Encoded = bytes | Path | None
"""An encoded image: its bytes, the file that holds them, or nothing where there should be one."""


class BrokenImageError(DataError):
    """One image that cannot become an array; `why` says so without its name."""

    def __init__(self, message: str, *, hint: str | None = None, why: str = "") -> None:
        super().__init__(message, hint=hint)
        self.why = why


class Picked(Protocol):
    """Some encoded images, each with its name for messages; small as a pickle."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[object, Encoded]]: ...


class EncodedImages(Protocol):
    """All encoded images of a split at random access."""

    def pick(self, rows: NDArray[Any]) -> Picked:
        """The images of some rows, int64 (M,), in this order; they are read when they are iterated."""
        ...


@dataclass(frozen=True)
class ImageRules:
    """What images become: the fields of `ImageSettings` of the same names. Plain values, since workers get a copy."""

    channels: int
    size: tuple[int, int] | None
    fit: str = "stretch"
    crop_share: float = 1.0
    interpolation: str = "bilinear"
    background: int = 255
    max_pixels: int = 89_478_485

    def identity(self) -> dict[str, Any]:
        """What of the rules decides the samples."""
        kept: dict[str, Any] = {"rules": _VERSION, "channels": self.channels, "size": self.size}
        kept["background"] = self.background
        if self.size is not None:
            kept |= {"fit": self.fit, "crop_share": self.crop_share, "interpolation": self.interpolation}
        return kept


class ImageDecoder:
    """Decodes the images of one data set, which all end up with the same channels and size.

    Without a size every image must have that of the first.
    """

    def __init__(self, rules: ImageRules) -> None:
        self.rules = rules
        self._mode = "L" if rules.channels == 1 else "RGB"
        self._first: tuple[str, tuple[int, int]] | None = None

    def identity(self) -> dict[str, Any]:
        """What of the decoder decides the samples."""
        return self.rules.identity()

    def decode(self, images: Iterable[tuple[object, Encoded]], count: int) -> NDArray[Any]:
        """Decode `count` images, each with its name for messages, to uint8 (count, C, H, W).

        Raises:
            DataError: images are broken (it names the first ones), one has another size than the first, or all do not
                fit into memory.
        """
        import numpy as np

        pixels: Any = None
        broken: list[BrokenImageError] = []
        place = -1
        with self.opening():
            for place, (name, encoded) in enumerate(images):
                try:
                    image = np.asarray(self._same_size(name, self.convert(name, encoded)))
                except BrokenImageError as error:
                    broken.append(error)
                    if len(broken) == _LOOKED_FOR:
                        break
                    continue
                if broken:
                    continue  # the array is of no use any more: only who else is broken matters
                shape = (self.rules.channels, *image.shape[:2])
                if pixels is None:
                    pixels = np.empty((_fitting(count, shape), *shape), np.uint8)
                pixels[place] = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)
        if broken:
            raise _all_broken(broken, count)
        assert place + 1 == count > 0
        return pixels  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Pillow with our limit of pixels, and without its notes on metadata that is damaged and not needed."""
        from PIL import Image

        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = self.rules.max_pixels
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                yield
        finally:
            Image.MAX_IMAGE_PIXELS = before

    def convert(self, name: object, encoded: Encoded) -> PillowImage:
        """One image by the rules, in mode L or RGB. To be called inside of `opening`.

        Raises:
            BrokenImageError: it cannot be.
        """
        with self.opened(name, encoded) as image:
            return self.prepared(name, image)

    def prepared(self, name: object, image: PillowImage) -> PillowImage:
        """An opened image, which changes, by the rules. Raises BrokenImageError."""
        return self._fitted(self._in_mode(name, _upright(image)))

    @contextlib.contextmanager
    def opened(self, name: object, encoded: Encoded) -> Iterator[PillowImage]:
        """An image as it is in its file, loaded. To be called inside of `opening`.

        Raises:
            BrokenImageError: it cannot be; also for what Pillow raises in the body of the `with`.
        """
        from PIL import Image

        try:
            with Image.open(_stream(name, encoded), formats=FORMATS) as image:
                image.load()
                yield image
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise _broken(
                name,
                f"the image has more than {self.rules.max_pixels} pixels",
                "make it smaller before training, or raise `data.max_pixels`",
            ) from None
        except BrokenImageError:
            raise
        except FileNotFoundError:
            raise _broken(name, "there is no such file", "mend the path, or put the file there") from None
        except DAMAGED:
            raise _broken(name, "the image cannot be decoded", "replace or remove it") from None

    def _same_size(self, name: object, image: PillowImage) -> PillowImage:
        size = (image.height, image.width)
        self._first = self._first or (str(name), size)
        if size != self._first[1]:
            first = f"{self._first[0]} is {_text(self._first[1])}"
            raise DataError(
                f"images differ in size (height x width): {first}, {name} is {_text(size)}",
                hint="set `data.size: [height, width]` to resize all",
            )
        return image

    def _in_mode(self, name: object, image: PillowImage) -> PillowImage:
        import numpy as np
        from PIL import Image

        if (image.mode == "I" and image.format == "PPM") or image.mode.startswith("I;16"):
            # Both hold 0 .. 65535: the upper 8 bits.
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(self._mode)
        if image.mode in ("I", "F"):
            raise _broken(name, "pixels of 32 bits have no known range", "save the image with 8 or 16 bits")
        if image.has_transparency_data:
            behind = Image.new("RGBA", image.size, (*[self.rules.background] * 3, 255))
            image = Image.alpha_composite(behind, image.convert("RGBA"))
        return image if image.mode == self._mode else image.convert(self._mode)

    def _fitted(self, image: PillowImage) -> PillowImage:
        from PIL import Image

        if self.rules.size is None:
            return image
        height, width = self.rules.size
        resample = Image.Resampling[self.rules.interpolation.upper()]
        if self.rules.fit == "crop":
            scale = max(width / image.width, height / image.height) / self.rules.crop_share
            # What is cut out, in pixels of the image itself.
            across, down = min(image.width, width / scale), min(image.height, height / scale)
            left, top = (image.width - across) / 2, (image.height - down) / 2
            return image.resize((width, height), resample, box=(left, top, left + across, top + down))
        if self.rules.fit == "pad":
            scale = min(width / image.width, height / image.height)
            inside = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            canvas = Image.new(image.mode, (width, height))
            canvas.paste(image.resize(inside, resample), ((width - inside[0]) // 2, (height - inside[1]) // 2))
            return canvas
        return image.resize((width, height), resample)


def _upright(image: PillowImage) -> PillowImage:
    """A loaded image turned as its EXIF orientation says; as it is where that cannot be read."""
    from PIL import ImageOps

    with contextlib.suppress(*DAMAGED):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _stream(name: object, encoded: Encoded) -> io.BytesIO | Path:
    if encoded is None:
        raise _broken(name, "there is no image", "remove the row, or store the image's bytes")
    size = len(encoded) if isinstance(encoded, bytes) else encoded.stat().st_size
    if size > LARGEST_ENCODED_BYTES:
        raise _broken(name, f"the file has more than {LARGEST_ENCODED_BYTES >> 20} MiB", "replace or remove it")
    if isinstance(encoded, bytes):
        return io.BytesIO(encoded)
    if not encoded.is_file():  # a pipe would be waited for
        raise _broken(name, "this is no regular file", "replace or remove it")
    return encoded


def _broken(name: object, why: str, hint: str) -> BrokenImageError:
    return BrokenImageError(f"{name}: {why}", hint=hint, why=why)


def _all_broken(broken: list[BrokenImageError], count: int) -> DataError:
    hint = "or leave broken ones out: `data.skip_broken: 0.01`; `edgekd data check` lists all"
    if len(broken) == 1:
        return DataError(broken[0].message, hint=f"{broken[0].hint}, {hint}")
    number = f"{len(broken)} or more" if len(broken) == _LOOKED_FOR else str(len(broken))
    first = "; ".join(error.message for error in broken[:_LISTED])
    return DataError(f"{number} of {count} images are broken: {first}", hint=f"replace or remove them, {hint}")


def _fitting(count: int, shape: tuple[int, ...]) -> int:
    """`count`, if so many images fit into the memory of this machine."""
    needed = count * math.prod(shape)
    memory = physical_bytes()
    if needed > memory:
        raise DataError(
            f"{count} decoded images take {needed / 2**30:.1f} GiB, and this machine has {memory / 2**30:.1f} GiB",
            hint="let `data.stream` be auto, set `data.limit: {train: N}`, or a smaller `data.size`",
        )
    return count


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
