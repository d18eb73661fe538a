"""The few facts in a Parquet file's footer that must be known before pyarrow is loaded: columns and rows.

A footer is a FileMetaData struct in Thrift's compact protocol
(https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import DataError

_SCHEMA, _ROWS = 2, 3  # fields of FileMetaData
_NAME, _CHILDREN = 4, 5  # fields of SchemaElement


@dataclass(frozen=True)
class Footer:
    """Names of the top-level columns, and number of rows."""

    columns: tuple[str, ...]
    rows: int


def read_footer(path: Path) -> Footer:
    """Read a Parquet file's footer.

    Raises:
        DataError: it cannot be read, or is no Parquet file.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 8))
            length, magic = struct.unpack("<I4s", stream.read())
            if magic != b"PAR1" or length > size - 12:
                raise ValueError("no footer")
            stream.seek(size - 8 - length)
            fields = _Compact(stream.read(length)).struct(last=_ROWS)
        return Footer(_top_level(fields[_SCHEMA]), fields[_ROWS])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="check the file and its rights") from None
    except (ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError):
        raise DataError(
            f"{path}: is not a readable Parquet file", hint="write it again, or remove it from the folder"
        ) from None


def _top_level(elements: list[dict[int, Any]]) -> tuple[str, ...]:
    """Names of the children of the first element; the list is the tree of columns, parents first."""
    names: list[str] = []
    place = 1
    while place < len(elements):
        names.append(elements[place][_NAME].decode())
        open_children = 1
        while open_children:
            open_children += elements[place].get(_CHILDREN, 0) - 1
            place += 1
    return tuple(names)


class _Compact:
    """Reads Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, last: int | None = None) -> dict[int, Any]:
        """Values by the number of their field, up to the field `last`."""
        fields: dict[int, Any] = {}
        number = 0
        while (header := self._byte()) != 0:
            number = number + (header >> 4) if header >> 4 else self._signed()
            fields[number] = self._value(header & 15, in_list=False)
            if number == last:
                break
        return fields

    def _value(self, kind: int, *, in_list: bool) -> Any:
        if kind in (1, 2) and not in_list:
            return kind == 1
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):
            return self._bytes(8 if kind == 7 else self._unsigned())
        if kind in (9, 10):
            header = self._byte()
            size = header >> 4 if header >> 4 != 15 else self._unsigned()
            return [self._value(header & 15, in_list=True) for _ in range(size)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"unexpected type {kind}")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ValueError("cut off")
        return self._data[self._at - count : self._at]

    def _unsigned(self) -> int:
        result = shift = 0
        while True:
            byte = self._byte()
            result |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return result

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
