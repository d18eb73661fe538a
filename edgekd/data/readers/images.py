"""Encoded images to one uint8 array, with Pillow.

EXIF orientation is applied, alpha is dropped, 16-bit grey keeps its upper 8 bits. An image of more pixels than Pillow's
`Image.MAX_IMAGE_PIXELS` (89,478,485 unless someone changed it) is refused.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekd.data.memory import physical_bytes
from edgekd.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image as PillowImage

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


class Picked(Protocol):
    """Some encoded images, each with its name for messages; small as a pickle."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[object, bytes | Path]]: ...


class EncodedImages(Protocol):
    """All encoded images of a split at random access."""

    def pick(self, rows: NDArray[Any]) -> Picked:
        """The images of some rows, int64 (M,), in this order; they are read when they are iterated."""
        ...


class ImageDecoder:
    """Decodes the images of one data set, which all end up with the same channels and size.

    Args:
        channels: 1 for grey, 3 for RGB.
        size: height and width to resize to (bilinear, antialiased, the aspect is not kept), or None: then every image
            must have the size of the first.
    """

    def __init__(self, channels: int, size: tuple[int, int] | None) -> None:
        self._mode = "L" if channels == 1 else "RGB"
        self._channels = channels
        self._resize = size
        self._first: tuple[str, tuple[int, int]] | None = None

    def identity(self) -> dict[str, Any]:
        """What of the decoder decides the samples."""
        return {"channels": self._channels, "size": self._resize}

    def decode(self, images: Iterable[tuple[object, bytes | Path]], count: int) -> NDArray[Any]:
        """Decode `count` images, each with its name for messages, to uint8 (count, C, H, W).

        Raises:
            DataError: an image cannot be decoded, has another size than the first, or all do not fit into memory.
        """
        import numpy as np
        from PIL import Image

        pixels: Any = None
        place = -1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata that is damaged and not needed
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for place, (name, encoded) in enumerate(images):
                image = np.asarray(self._decode_one(name, encoded))
                shape = (self._channels, *image.shape[:2])
                if pixels is None:
                    pixels = np.empty((_fitting(count, shape), *shape), np.uint8)
                pixels[place] = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)
        assert place + 1 == count > 0
        return pixels  # type: ignore[no-any-return]

    def _decode_one(self, name: object, encoded: bytes | Path) -> PillowImage:
        from PIL import Image, ImageOps

        try:
            with Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as image:
                ImageOps.exif_transpose(image, in_place=True)
                result = self._convert(name, image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            raise DataError(
                f"{name}: the image has more than {Image.MAX_IMAGE_PIXELS} pixels",
                hint="make it smaller before training",
            ) from None
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error):
            raise DataError(f"{name}: the image cannot be decoded", hint="replace or remove it") from None
        if self._resize is not None:
            return result.resize((self._resize[1], self._resize[0]), Image.Resampling.BILINEAR)
        size = (result.height, result.width)
        self._first = self._first or (str(name), size)
        if size != self._first[1]:
            first = f"{self._first[0]} is {_text(self._first[1])}"
            raise DataError(
                f"images differ in size (height x width): {first}, {name} is {_text(size)}",
                hint="set `data.size: [height, width]` to resize all",
            )
        return result

    def _convert(self, name: object, image: PillowImage) -> PillowImage:
        import numpy as np
        from PIL import Image

        if image.mode == self._mode:
            image.load()
            return image
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(self._mode)
        if image.mode in ("I", "F"):
            raise DataError(f"{name}: pixels of 32 bits have no known range", hint="save the image with 8 or 16 bits")
        if image.mode == "P" and image.has_transparency_data:
            return image.convert("RGBA").convert(self._mode)
        return image.convert(self._mode)


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
