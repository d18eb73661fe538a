"""A data set as the rest of edgekd sees it: a fingerprint at no cost, and splits that load when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.data.fingerprint import Memo
from edgekd.data.further import FurtherTable, open_table
from edgekd.data.identity import of_data, of_split
from edgekd.data.loading import Loader
from edgekd.data.readers import ImageReader, Reader, open_reader
from edgekd.data.readers.sound import Broken, SoundReader
from edgekd.data.settings import DataSettings, unknown_table
from edgekd.data.sources import LEARNING_SPLITS, SPLITS, Split
from edgekd.errors import ConfigError, DataError
from edgekd.files import sha256_json

if TYPE_CHECKING:
    from torch import Tensor

    from edgekd.data.table import Normalization, Rows


@dataclass(frozen=True)
class ClassInfo:
    """The classes of one integer target: how many, and their names if the source has any."""

    count: int
    names: tuple[str, ...] | None


def open_data(
    settings: DataSettings, *, base: Path, seed: int, memo: Path | None = None, spool: Path | None = None
) -> Data:
    """Find a data set, without reading samples and without loading numpy, torch or pyarrow.

    Args:
        base: folder that relative paths start from.
        seed: draws the splits that the source does not bring, `limit` and `labelled`.
        memo: JSON file that remembers digests of files, and what was measured, between runs.
        spool: folder of the store that keeps the copy of images to stream from, if the source needs one; without it a
            temporary folder, made when it is needed, gone when nothing streams from it any more.

    Raises:
        ConfigError: a path, a file, a column or an array is missing.
        DataError: a file is not what its name says.
    """
    kept = Memo(memo)
    reader = open_reader(settings, base, settings, kept)
    if settings.labelled is not None and not reader.target_names:
        raise ConfigError("data.labelled: the data has no labels to keep", hint="remove `labelled:`")
    names = reader.input_names, reader.target_names
    tables = {
        name: open_table(name, table, settings, *names, base=base, seed=seed, memo=kept)
        for name, table in settings.tables.items()
    }
    return Data(settings, reader, seed, kept, Loader(settings, spool), tables)


class Data:
    """An opened data set. What is decoded stays in memory in this object, unless it is streamed.

    Attributes:
        settings: the options it was opened with.
        input_names: `image` for images and digits, else the names of the arrays.
        target_names: `label` for images and digits, else the names of the arrays; empty without labels.
    """

    def __init__(
        self,
        settings: DataSettings,
        reader: Reader,
        seed: int,
        memo: Memo,
        loader: Loader,
        further: Mapping[str, FurtherTable],
    ) -> None:
        self.settings = settings
        self._reader = reader
        self._seed = seed
        self._memo = memo
        self._loader = loader
        self._further = further
        self._shares: dict[Split, float] = {}
        if "test" not in reader.splits:
            self._shares["test"] = settings.test
        if "validation" not in reader.splits:
            self._shares["validation"] = settings.validation
        self._targets: dict[Split, dict[str, Tensor]] = {}
        self._tables: dict[str, Rows] = {}  # splits, and further tables, which are never called like them
        self._normalization: dict[str, Normalization] = {}

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in their order."""
        return self._reader.input_names

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the targets, in their order."""
        return self._reader.target_names

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of everything that decides the samples, their splits and their normalisation; not of `augment`.

        Content of files and their names inside of the data set count, where it lies does not. The seed counts only if
        it draws something. Files that the memo knows are not read. Further tables have fingerprints of their own.

        Raises:
            DataError: a file cannot be read.
        """
        return of_data(self.settings, self.digests, self._reader.identity(), self._shares, self._seed)

    @cached_property
    def learning_fingerprint(self) -> str:
        """The same of train and validation alone (a test split drawn from train counts by its share)."""
        files = {name: digest for split in LEARNING_SPLITS for name, digest in self.files_of(split).items()}
        identity = {str(split): self._reader.identity(self._origin(split)) for split in LEARNING_SPLITS}
        return of_data(self.settings, files, identity, self._shares, self._seed, LEARNING_SPLITS)

    @cached_property
    def learning_digests(self) -> dict[str, str]:
        """Those of `digests` that are not of files of the test split alone."""
        tested = {*self.files_of("test")}.difference(*map(self.files_of, LEARNING_SPLITS))
        return {name: digest for name, digest in self.digests.items() if name not in tested}

    def split_fingerprint(self, split: Split) -> str:
        """Hex sha256 of what decides which samples a split holds, and not of what they become (size, normalisation).

        Two scores on one split can be compared where this is the same, whatever became of the rest of the data.
        """
        rules = self._reader.decoder.identity() if isinstance(self._reader, ImageReader) else {}
        identity = {
            name: value for name, value in self._reader.identity(self._origin(split)).items() if name not in rules
        }
        return of_split(split, self.settings, self.files_of(split), identity, self._shares, self._seed)

    def files_of(self, split: Split) -> dict[str, str]:
        """Those of `digests` that hold a split's samples alone; what is drawn from train has the files of train.

        The table of a CSV source is of none: it may hold the rows of all splits.
        """
        return {name: self.digests[name] for name in self._reader.files(self._origin(split))}

    def _origin(self, split: Split) -> Split:
        """The split of the source that a split is read, or drawn, from."""
        return "train" if split in self._shares else split

    def check(self) -> None:
        """See that everything is still there.

        Raises:
            ConfigError: a path, a file, a column or an array is missing.
        """
        self._reader.check()
        for table in self._further.values():
            table.check()

    @property
    def left_out_images(self) -> dict[Split, list[Broken]]:
        """The broken images of each split of the source that `skip_broken` leaves out.

        Raises:
            DataError: there are more than may be.
        """
        return self._reader.broken if isinstance(self._reader, SoundReader) else {}

    def table(self, name: str) -> Rows:
        """A further table: all its rows, with targets as far as it has those of the data.

        Its inputs are named, shaped and typed like those of train; no two samples of data and tables share an id.

        Raises:
            ConfigError: there is no such table, or its inputs do not fit those of the data.
            DataError: as `load`.
        """
        self._check_table(name)
        if name not in self._tables:
            made = name not in self._further
            self._tables[name] = self._unlabelled() if made else self._further[name].load(self, self._loader)
        return self._tables[name]

    def left_out(self, name: str) -> dict[str, str]:
        """Targets that a further table has and that fell away when it was loaded, because they do not fit; and why."""
        return dict(self._further[name].left_out) if name in self._further else {}

    def table_fingerprint(self, name: str) -> str:
        """Hex sha256 of everything that decides the rows of a further table.

        Raises:
            ConfigError: there is no such table.
            DataError: a file cannot be read.
        """
        self._check_table(name)
        if name in self._further:
            return self._further[name].fingerprint
        return sha256_json({"table": name, "of": self.learning_fingerprint})

    def classes_of(self, target: str) -> tuple[int, tuple[str, ...] | None]:
        """How many classes an integer target has, and their names if the source has any."""
        return self.classes()[target].count, self._reader.names(target)

    def _check_table(self, name: str) -> None:
        known = self.settings.table_names
        if name not in known:
            message, hint = unknown_table(name, known)
            raise ConfigError(message, hint=hint)

    def load(self, split: Split) -> Rows:
        """The samples of a split, in the order of the source: a table that is decoded on the first call, or streamed.

        Images are streamed if `stream` says so, or if decoded they would take more than the share `memory` of the free
        memory. With `validation: 0` the validation split is empty: a table of no rows.

        Raises:
            DataError: something cannot be decoded or makes no sense, a split is empty, or `test` is 0 and asked for.
        """
        if split not in self._tables:
            self._tables[split] = self._load(split)
        return self._tables[split]

    def classes(self) -> dict[str, ClassInfo]:
        """The classes of every integer target, by its name. Reads the labels of train, decodes no images.

        Raises:
            DataError: a label makes no sense.
        """
        result: dict[str, ClassInfo] = {}
        for name, labels in self._source_targets("train").items():
            if not labels.is_floating_point():
                count = self.settings.classes or int(labels.max()) + 1
                names = self._reader.names(name)
                result[name] = ClassInfo(count, names if names is not None and len(names) == count else None)
        return result

    def normalization(self) -> dict[str, Normalization]:
        """How each input is normalised, by its name. `auto` reads train, once: the memo remembers what was measured.

        Raises:
            ConfigError: the given mean and std do not fit the channels.
            DataError: as `load`.
        """
        if not self._normalization:
            from edgekd.data.table import given_normalization

            given = self.settings.normalize
            self._normalization = (
                self._measured() if given == "auto" else given_normalization(given, self.load("train"))
            )
        return dict(self._normalization)

    def counts(self) -> dict[str, int]:
        """Number of samples of each split, without decoding images; remembered in the memo.

        Raises:
            DataError: a split is empty.
        """
        known = self._memo.counts(self.fingerprint)
        if known is not None:
            return known
        from edgekd.data.splits import split_sizes

        sizes = {split: self._source_rows(split) for split in self._reader.splits}
        sizes.update(split_sizes(sizes["train"], self._shares))
        counts = {str(split): min(sizes[split], self._limit(split) or sizes[split]) for split in SPLITS}
        if self.settings.labelled is not None:
            counts["train"] = self._labels_kept(counts["train"])
        self._memo.remember_counts(self.fingerprint, counts)
        return counts

    def _measured(self) -> dict[str, Normalization]:
        from edgekd.data.table import Normalization, measure_rows

        kept = self._memo.normalization(self.fingerprint)
        if kept is not None:
            return {name: Normalization(tuple(mean), tuple(std), scale) for name, (mean, std, scale) in kept.items()}
        found = measure_rows(self.load("train"))
        self._memo.remember_normalization(self.fingerprint, {k: [n.mean, n.std, n.scale] for k, n in found.items()})
        return found

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hex sha256 of each group of files that the data is read from, by the group's name."""
        return self._memo.digests(self._reader.files())

    def _load(self, split: Split) -> Rows:
        import torch

        if self._shares.get(split) == 0:
            if split == "test":
                raise DataError(
                    "there is no test split: `data.test` is 0", hint="set it to the share to test on, e.g. 0.2"
                )
            return self.load("train").take(torch.empty(0, dtype=torch.int64))
        origin = self._origin(split)
        rows = self._rows(split, origin)
        targets = self._source_targets(origin)
        before = SPLITS[: SPLITS.index(origin)]
        offset = sum(self._source_rows(earlier) for earlier in before if earlier in self._reader.splits)
        return self._loader.load(self._reader, origin, rows, targets, offset, lambda: self.digests)

    def _unlabelled(self) -> Rows:
        """The rows of train whose labels are not kept."""
        _, rows = self._by_label
        return self._loader.load(self._reader, "train", rows, {}, 0, lambda: self.digests)

    @cached_property
    def _by_label(self) -> tuple[Tensor, Tensor]:
        """Rows of the source's train whose labels are kept, and those whose are not."""
        import torch

        from edgekd.data.splits import choose_rows

        rows = self._limited("train", "train")
        labels = self._stratify("train")
        kept = self._labels_kept(len(rows))
        chosen = choose_rows(len(rows), kept, None if labels is None else labels[rows], self._seed, "labelled")
        others = torch.ones(len(rows), dtype=torch.bool)
        others[chosen] = False
        return rows[chosen], rows[others]

    def _labels_kept(self, samples: int) -> int:
        """`labelled`, held against the training samples that there are."""
        kept = self.settings.labelled
        assert kept is not None
        if kept >= samples:
            raise ConfigError(
                f"data.labelled: {kept} labels of {samples} training samples leave none unlabelled",
                hint="lower it, or remove `labelled:`",
            )
        return kept

    def _rows(self, split: Split, origin: Split) -> Tensor:
        """Rows of the split in the part of the source that it comes from."""
        if split == "train" and self.settings.labelled is not None:
            return self._by_label[0]
        return self._limited(split, origin)

    def _limited(self, split: Split, origin: Split) -> Tensor:
        """The same before labels are taken away."""
        import torch

        from edgekd.data.splits import choose_rows

        labels = self._stratify(origin)
        rows = self._train_rows[split] if origin == "train" else torch.arange(self._source_rows(origin))
        limit = self._limit(split)
        if limit is None or limit >= len(rows):
            return rows
        return rows[
            choose_rows(len(rows), limit, labels[rows] if labels is not None else None, self._seed, f"limit {split}")
        ]

    @cached_property
    def _train_rows(self) -> dict[Split, Tensor]:
        from edgekd.data.splits import split_rows

        return split_rows(self._source_rows("train"), self._shares, self._stratify("train"), self._seed)

    def _stratify(self, origin: Split) -> Tensor | None:
        """The labels to keep in proportion, if there are such."""
        from edgekd.data.splits import stratum

        return stratum(self._source_targets(origin).values())

    def _source_rows(self, split: Split) -> int:
        rows = self._reader.rows(split)
        if rows == 0:
            raise DataError(f"the {split} split is empty", hint="add samples, or remove its files")
        return rows

    def _source_targets(self, split: Split) -> dict[str, Tensor]:
        """All targets of a split that the source brings, checked."""
        if split not in self._targets:
            import torch

            from edgekd.data.labels import check_labels

            self._source_rows(split)
            targets = self._reader.targets(split)
            train = self._source_targets("train") if split != "train" else {}
            for name, labels in targets.items():
                if name in train and train[name].is_floating_point() != labels.is_floating_point():
                    raise DataError(
                        f"{name!r} is of another type in {split} than in train", hint="save the same type for both"
                    )
                if not labels.is_floating_point():
                    seen = torch.unique(train[name]) if train else None
                    check_labels(labels, split, name, classes=self.settings.classes, seen=seen)
            self._targets[split] = targets
        return self._targets[split]

    def _limit(self, split: Split) -> int | None:
        limit: int | None = getattr(self.settings.limit, split) if self.settings.limit else None
        return limit
