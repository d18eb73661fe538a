"""A further table: a data set of its own whose training rows are fed like those of the main data (`data.tables`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.config.settings import did_you_mean
from edgekd.data.fingerprint import Memo
from edgekd.data.loading import Loader
from edgekd.data.readers import Reader, open_reader
from edgekd.data.readers.npz import arrays_of
from edgekd.data.settings import DataSettings, TableSettings, first_id
from edgekd.data.sources import NpzSettings
from edgekd.errors import ConfigError, DataError
from edgekd.files import sha256_json

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.data.source import Data
    from edgekd.data.table import Rows

_FINGERPRINT_VERSION = 1  # a change of what rows mean raises it


@dataclass(frozen=True)
class FurtherTable:
    """One table of `data.tables`. Made by `open_table`.

    Attributes:
        targets: names of the targets that it has, all of them the main data's.
        optional: whether targets that do not fit the main data's fall away; those that the file asks for must fit.
        left_out: targets that fell away when rows were loaded, and why.
    """

    name: str
    settings: TableSettings
    reader: Reader
    targets: tuple[str, ...]
    optional: bool
    seed: int
    memo: Memo
    left_out: dict[str, str] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that decides its rows and their ids. Raises DataError for an unreadable file."""
        return sha256_json(
            {
                "version": _FINGERPRINT_VERSION,
                "name": self.name,
                "source": self.settings.source,
                "files": self._digests,
                "identity": self.reader.identity(),
                "targets": self.targets,
                "limit": self.settings.limit,
                "seed": self.seed if self.settings.limit else None,
            }
        )

    def check(self) -> None:
        """See that everything is still there. Raises ConfigError."""
        try:
            self.reader.check()
        except ConfigError as error:
            raise _inside(self.name, error) from None

    def load(self, main: Data, loader: Loader) -> Rows:
        """Its rows, decoded or streamed.

        Raises:
            ConfigError: its inputs do not fit those of the main data.
            DataError: something cannot be decoded, or a label makes no sense.
        """
        train, _ = main.load("train"), main.classes()  # what is wrong with these is no matter of the table
        try:
            if not self.reader.rows("train"):
                raise DataError("it has no rows", hint="add samples, or remove the table")
            self._check_inputs(train)
            targets = self._targets(main, train)
            rows = self._rows(list(targets.values()))
            return loader.load(self.reader, "train", rows, targets, first_id(self.name), lambda: self._digests)
        except DataError as error:
            raise DataError(f"data.tables.{self.name}: {error.message}", hint=error.hint) from None

    @cached_property
    def _digests(self) -> dict[str, str]:
        return self.memo.digests(self.reader.files())

    def _rows(self, targets: list[Tensor]) -> Tensor:
        import torch

        from edgekd.data.splits import choose_rows, stratum

        n = self.reader.rows("train")
        limit = self.settings.limit
        if limit is None or limit >= n:
            return torch.arange(n)
        return choose_rows(n, limit, stratum(targets), self.seed, f"limit table {self.name}")

    def _check_inputs(self, train: Rows) -> None:
        import torch

        for name, own in self.reader.inputs("train", torch.arange(1)).items():
            theirs = train.inputs[name]
            if (own.shape[1:], own.dtype) != (theirs.shape[1:], theirs.dtype):
                kinds = [f"{tuple(x.shape[1:])} {str(x.dtype).removeprefix('torch.')}" for x in (own, theirs)]
                images = self.settings.npz is None and own.dtype == theirs.dtype
                raise ConfigError(
                    f"data.tables.{self.name}: a row of {name!r} is {kinds[0]}, in train {kinds[1]}",
                    hint="give `data.size: [height, width]`" if images else "save both alike",
                )

    def _targets(self, main: Data, train: Rows) -> dict[str, Tensor]:
        """Targets of all rows as far as they fit the main data's, classes counted as there."""
        found: dict[str, Tensor] = {}
        own = self.reader.targets("train") if self.targets else {}
        for name in self.targets:
            try:
                found[name] = self._target(name, own[name], main, train)
            except DataError as error:
                if not self.optional:
                    raise
                self.left_out[name] = error.message
        return found

    def _target(self, name: str, values: Tensor, main: Data, train: Rows) -> Tensor:
        """One target, as the main data counts its classes. Raises DataError where it does not fit."""
        from edgekd.data.labels import check_labels

        if train.targets[name].is_floating_point() != values.is_floating_point():
            raise DataError(f"{name!r} is of another type than in train", hint="save the same type for both")
        if values.is_floating_point():
            return values
        count, names = main.classes_of(name)
        labels = _in_classes(values, self.reader.names(name), names)
        check_labels(labels, "its", name, classes=count, seen=None)
        return labels


def open_table(
    name: str,
    settings: TableSettings,
    main: DataSettings,
    inputs: tuple[str, ...],
    targets: tuple[str, ...],
    *,
    base: Path,
    seed: int,
    memo: Memo,
) -> FurtherTable:
    """Find a table, without reading samples.

    Args:
        main: the data that it belongs to.
        inputs: names of the main data's inputs, which must be the table's, too.
        targets: names of the main data's targets.

    Raises:
        ConfigError: something is missing, or is not named as in the main data.
        DataError: a file is not what its name says.
    """
    optional = not _targets_named(settings)
    try:
        if settings.npz is not None:
            settings = settings.model_copy(update={"npz": _npz_like(settings.npz, inputs, targets, base)})
        reader = open_reader(settings, base, main, memo)
        own = reader.target_names
    except ConfigError as error:
        raise _inside(name, error) from None
    except DataError as error:
        raise DataError(f"data.tables.{name}: {error.message}", hint=error.hint) from None
    if set(reader.input_names) != set(inputs):
        raise ConfigError(
            f"data.tables.{name}: its inputs are {', '.join(reader.input_names)}, the data's {', '.join(inputs)}",
            hint="a table has the inputs of the data, under the same names",
        )
    for target in own:
        if target not in targets and not optional:
            known = did_you_mean(target, targets) if targets else "the data has none: leave them out"
            raise ConfigError(f"data.tables.{name}: the data has no target {target!r}", hint=known)
    kept = tuple(target for target in targets if target in own)
    return FurtherTable(name, settings, reader, kept, optional, seed, memo)


def _targets_named(settings: TableSettings) -> bool:
    """Whether the file asks for the table's targets, which then must fit."""
    if settings.npz is not None:
        return "targets" in settings.npz.model_fields_set
    given = getattr(settings, settings.source)
    return settings.parquet is not None or "label" in given.model_fields_set


def _npz_like(npz: NpzSettings, inputs: tuple[str, ...], targets: tuple[str, ...], base: Path) -> NpzSettings:
    """Arrays that nobody names are those of the main data, targets as far as they are there."""
    found: dict[str, tuple[str, ...]] = {}
    if "inputs" not in npz.model_fields_set or {*npz.inputs} == {*inputs}:
        found["inputs"] = inputs
    if "targets" not in npz.model_fields_set:
        held = arrays_of(base / npz.path)
        found["targets"] = tuple(target for target in targets if target in held)
    return npz.model_copy(update=found)


def _in_classes(labels: Tensor, own: tuple[str, ...] | None, names: tuple[str, ...] | None) -> Tensor:
    """Labels, (N, ..), by the classes' places in the main data. Raises DataError where they are others."""
    import torch

    if own is None:
        return labels  # numbers are places already
    unknown = sorted(set(own) - set(names or ()))
    if names is not None and not unknown:
        return torch.tensor([names.index(name) for name in own])[labels]
    if names is None:
        raise DataError("its labels are texts, those of train are numbers", hint="write them alike")
    raise DataError(f"the class {unknown[0]!r} never occurs in train", hint=did_you_mean(unknown[0], names))


def _inside(name: str, error: ConfigError) -> ConfigError:
    """An error of a reader, which speaks of `data.npz.path`, with the table's own address."""
    return ConfigError(f"data.tables.{name}.{error.message.removeprefix('data.')}", hint=error.hint)
