"""Images and labels in what Hugging Face's `datasets` saved to disk: Arrow files in folders, read with pyarrow.

`DatasetDict.save_to_disk` writes dataset_dict.json and a folder for each split, `Dataset.save_to_disk` one such folder:
state.json names the Arrow files (IPC streams), dataset_info.json the features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgekd.config.settings import did_you_mean
from edgekd.data.readers.columns import ColumnReader, readable
from edgekd.data.readers.images import ImageDecoder
from edgekd.data.readers.layout import SPLIT_WORDS
from edgekd.data.sources import SPLITS, HuggingFaceSettings, Split
from edgekd.errors import ConfigError, DataError

_BATCH_ROWS = 512
_LARGEST_JSON_BYTES = 1 << 24
_HINT = "give the folder that `save_to_disk` wrote, with dataset_dict.json or state.json"


class HuggingFaceReader(ColumnReader):
    """Rows in the order of the files that state.json names."""

    kind = "Arrow"

    def __init__(self, settings: HuggingFaceSettings, root: Path, decoder: ImageDecoder) -> None:
        self._folders = folders_of(root)
        files = {split: _arrow_files(folder) for split, folder in self._folders.items()}
        super().__init__(root, files, settings.image, settings.label, decoder)

    def check(self) -> None:
        if "train" not in self._folders:
            there = " and ".join(self._folders) or "no split"
            raise ConfigError(f"data.huggingface.path: {self._root} holds {there} but no train", hint=_HINT)
        for split, folder in self._folders.items():
            for path in self._files[split]:
                if not path.is_file():
                    raise ConfigError(f"data.huggingface.path: {path} does not exist", hint=_HINT)
            columns = features_of(folder)
            for option, column in (("image", self._image), ("label", self._label)):
                if column is not None and column not in columns:
                    raise ConfigError(
                        f"data.huggingface.{option}: {folder} has no column {column!r}",
                        hint=did_you_mean(column, columns),
                    )

    def identity(self, split: Split | None = None) -> dict[str, Any]:
        return {"names": self._class_names(), **super().identity(split)}

    def names(self, target: str) -> tuple[str, ...] | None:
        return self._class_names() or super().names(target)

    def _class_names(self) -> tuple[str, ...] | None:
        """The names of a ClassLabel's classes."""
        feature = features_of(self._folders["train"]).get(self._label or "")
        given = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        return tuple(map(str, given)) if isinstance(given, list) else None

    def _rows_of(self, path: Path) -> int:
        return sum(batch.num_rows for batch in self._record_batches(path))

    def _column(self, path: Path, column: str) -> Any:
        import pyarrow as pa

        return pa.chunked_array([self._of(path, batch, column) for batch in self._record_batches(path)])

    def _batches(self, path: Path, column: str) -> Iterator[Any]:
        for batch in self._record_batches(path):
            found = self._of(path, batch, column)
            yield from (found.slice(start, _BATCH_ROWS) for start in range(0, len(found), _BATCH_ROWS))

    def _of(self, path: Path, batch: Any, column: str) -> Any:
        """A column of a batch, checked: what is in a file may point anywhere."""
        place = batch.schema.get_field_index(column)
        if place < 0:
            raise DataError(f"{path}: has no column {column!r}, which dataset_info.json names", hint="save it again")
        with readable(path, self.kind):
            found = batch.column(place)
            found.validate(full=True)
            return found.storage if hasattr(found, "storage") else found

    def _record_batches(self, path: Path) -> Iterator[Any]:
        import pyarrow as pa

        with readable(path, self.kind), pa.memory_map(str(path)) as source:
            yield from pa.ipc.open_stream(source)


def folders_of(root: Path) -> dict[Split, Path]:
    """The folder of each split. Raises ConfigError and DataError."""
    if (root / "state.json").is_file():
        return {"train": root}
    if not (root / "dataset_dict.json").is_file():
        raise ConfigError(f"data.huggingface.path: {root} holds neither dataset_dict.json nor state.json", hint=_HINT)
    named = _json(root / "dataset_dict.json").get("splits")
    words = [word for word in named if isinstance(word, str)] if isinstance(named, list) else []
    found = {SPLIT_WORDS[word]: root / word for word in words if word in SPLIT_WORDS}
    return {split: found[split] for split in SPLITS if split in found}


def _arrow_files(folder: Path) -> Sequence[Path]:
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ConfigError(
            f"data.huggingface.path: {folder} keeps an order of its rows beside them",
            hint="save it again with a newer `datasets`, or call `flatten_indices()` before `save_to_disk`",
        )
    listed = state.get("_data_files")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    names = [str(entry.get("filename")) for entry in entries]
    if not names or not all(name == Path(name).name and name != ".." for name in names):
        raise DataError(
            f"{folder / 'state.json'}: names no Arrow files in its own folder", hint="save the data set again"
        )
    return [folder / name for name in names]


def features_of(folder: Path) -> dict[str, Any]:
    """The features of a split's folder by name, as dataset_info.json has them. Raises ConfigError and DataError."""
    found = _json(folder / "dataset_info.json").get("features")
    if not isinstance(found, dict):
        raise DataError(f"{folder / 'dataset_info.json'}: names no features", hint="save the data set again")
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON_BYTES:
            raise DataError(f"{path}: larger than {_LARGEST_JSON_BYTES} bytes", hint="save the data set again")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"data.huggingface.path: {path} does not exist", hint=_HINT) from None
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: is not readable JSON", hint="save the data set again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: is not a mapping", hint="save the data set again")
    return found
