"""What an ONNX file from elsewhere may point to: nothing outside of its own folder (torch-free)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import ConfigError, first_line
from edgekd.files import sha256_file, sha256_json

_HINT = "put the data into the file: onnx.save(onnx.load(FILE), NEW) where FILE is one that you trust"


def check_onnx(path: Path) -> None:
    """See that a file is ONNX, and that the weights that it keeps in other files lie beside it, as plain files.

    Engines follow such a path wherever it leads; ONNX Runtime was seen to read a hard link out of the folder.

    Raises:
        ConfigError: it is not there, no ONNX, or points out of its folder.
    """
    for name in sorted(set(_places(_model(path)))):
        _check_place(path, name)
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ConfigError(f"{path}: not valid ONNX: {first_line(error)}", hint="export it again") from error


def digest_onnx(path: Path) -> str:
    """The sha256 of an ONNX file and of all files, whatever their names, in which it keeps its weights.

    Raises:
        ConfigError: as `check_onnx`.
    """
    files = {"": path}
    if _may_point(path):
        for name in sorted(set(_places(_model(path)))):
            _check_place(path, name)
            files[name] = path.parent / name
    return sha256_json({name: sha256_file(file) for name, file in files.items()})


def _may_point(path: Path) -> bool:
    """Whether the key that external data needs stands in a file: where it does not, onnx need not be imported."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"location") >= 0
    except (OSError, ValueError):  # not there, or empty
        return True


def _model(path: Path) -> Any:
    """An ONNX file without its external data."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file", hint="give the path of an ONNX file")
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        raise ConfigError(f"{path}: not an ONNX file, or damaged", hint="save or copy it again") from error
    if not model.HasField("graph") or not model.opset_import:
        raise ConfigError(f"{path}: not an ONNX file, or damaged", hint="save or copy it again")
    return model


def _check_place(path: Path, name: str) -> None:
    """One file of external data, by the name that the model gives it."""
    folder, place = path.parent.resolve(), path.parent / name
    words = f"{path}: keeps weights in {name!r}, "
    if Path(name).is_absolute() or not place.resolve().is_relative_to(folder):
        raise ConfigError(f"{words}which lies outside of its folder: refused", hint=_HINT)
    if place.is_symlink():
        raise ConfigError(f"{words}which is a link: refused", hint=_HINT)
    if not place.is_file():
        raise ConfigError(f"{words}which is not there", hint="copy that file too")
    if place.stat().st_nlink > 1:
        raise ConfigError(f"{words}which is a hard link: refused", hint=_HINT)


def _places(model: Any) -> Iterator[str]:
    """The names of all files that hold tensors of a model."""
    import onnx

    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor in a message, however deep: graphs stand in nodes, functions beside the graph."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            repeated = not hasattr(value, "ListFields")
            for inner in value if repeated else (value,):
                if hasattr(inner, "ListFields"):
                    yield from _tensors(inner)
