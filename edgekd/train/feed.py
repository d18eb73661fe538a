"""From the rows of a table to what networks see: views, device, normalisation, memory layout, mixing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edgekd.data.draws import sample_keys
from edgekd.data.mixing import Mix
from edgekd.data.noise import NoiseTable
from edgekd.data.settings import TABLE_IDS
from edgekd.data.table import Rows, Table
from edgekd.data.views import Look, Views
from edgekd.errors import ConfigError
from edgekd.train.world import World

Batch = dict[str, Tensor]
MIX_SHARE = "mix_share"
SAMPLE_IDS = "sample_ids"


def other_name(target: str) -> str:
    """The column that holds the classes of the samples that a batch is mixed with."""
    return f"{target}_other"


class Feed:
    """Training batches of one table: each sample in the view that (seed, epoch, sample) chooses for it.

    Where samples are mixed with others, real targets are mixed like the inputs. Classes stay a sample's own; those of
    its partner are in the column `other_name(target)`, and `mix_share`, float32 (N,), says how much of it is itself.

    Attributes:
        samples: numbers of samples in the column `sample_ids` are below it.
        ids: int64 (M,), the samples that this epoch visits here, in order.
        slots: int64 (M,), which of its own views each of them is seen in.

    Raises:
        ConfigError: the table's inputs cannot be augmented as the views say.
    """

    def __init__(self, world: World, table: Rows, views: Views, device: torch.device) -> None:
        self._world, self._table, self._views, self._device = world, table, views, device
        self._rows = self._partners = self.ids = self.slots = torch.empty(0, dtype=torch.int64)
        views.check(table.inputs)
        self._real = {name for name, y in table.targets.items() if y.is_floating_point()}
        self._real |= {head.target for head in world.heads if head.task == "regression" and head.target is not None}
        self._columns = {*table.inputs, *table.targets, SAMPLE_IDS}
        self.samples = int(table.ids.max()) + 1 if len(table) else 0
        self._ranks: Tensor | None = None
        if self.samples > TABLE_IDS:
            # Knowledges keep a place for each number up to the largest; ids of further tables are too far apart.
            self._ranks = torch.unique(table.ids)
            self.samples = len(self._ranks)
        if views.mixing is not None:
            made = {MIX_SHARE, *(other_name(name) for name in table.targets.keys() - self._real)}
            for name in sorted(made & self._columns):
                raise ConfigError(f"the data has a column {name!r}, which mixing makes", hint="rename it in the data")
            self._columns |= made

    def columns(self) -> set[str]:
        """Names that a batch holds."""
        return self._columns

    def start_epoch(self, epoch: int, rows: Tensor) -> None:
        """The rows of the table that this epoch visits, int64 (M,), in this order."""
        if isinstance(self._table, NoiseTable):
            self._table = self._table.at(epoch)
        self._rows, self.ids = rows, self._table.ids[rows]
        self.slots = self._views.slot(epoch, self.ids)
        if self._views.mixing is not None:
            # Before any step, because a table that is read from disk wants to know the rows of the steps to come.
            self._partners = self._views.mixing.partners(sample_keys(self.ids, self.slots), len(self._table))

    def batches(self, sizes: Sequence[int]) -> Iterator[Batch]:
        """Consecutive batches of these sizes, from the first row of the epoch on."""
        groups = torch.split(torch.arange(sum(sizes)), list(sizes))
        tables = self._table.batches([self._group(positions) for positions in groups])
        for positions, rows in zip(groups, tables, strict=True):
            yield self._batch(rows, positions)

    def batch(self, positions: Tensor) -> Batch:
        """The batch of some positions of the epoch, int64 (N,), whatever was visited so far."""
        return self._batch(self._table.take(self._group(positions)), positions)

    def _group(self, positions: Tensor) -> Tensor:
        """Rows of the table for a batch: its own, then those of the partners."""
        rows = self._rows[positions]
        return rows if self._views.mixing is None else torch.cat([rows, self._partners[positions]])

    def _batch(self, rows: Table, positions: Tensor) -> Batch:
        look = self._views.look(self.ids[positions], self.slots[positions])
        if self._views.mixing is None:
            return self._own(rows, look)
        n = len(positions)
        batch = self._own(_part(rows, slice(n)), look)
        return self._mixed(batch, _part(rows, slice(n, None)), self._views.mixing.plan(look.keys))

    def _own(self, rows: Table, look: Look) -> Batch:
        """What the samples themselves give."""
        batch = {}
        for name, x in rows.inputs.items():
            shown = to_input(self._world, name, self._views.show(x, look), self._device)
            batch[name] = self._views.erase(shown, look)
        numbers = rows.ids if self._ranks is None else torch.searchsorted(self._ranks, rows.ids)
        batch[SAMPLE_IDS] = numbers.to(self._device)
        return {**batch, **{name: y.to(self._device) for name, y in rows.targets.items()}}

    def _mixed(self, batch: Batch, partners: Table, mix: Mix) -> Batch:
        """A batch mixed with its partners, N rows each."""
        share = mix.shares(next(iter(batch.values()))).to(self._device)
        for name, raw in partners.inputs.items():
            other = to_input(self._world, name, self._views.apply(raw, mix.view.to(raw.device)), self._device)
            batch[name] = mix.blend(batch[name], other)
        for name, theirs in partners.targets.items():
            y = theirs.to(self._device)
            if name in self._real:
                weight = share.view(-1, *[1] * (y.dim() - 1))
                batch[name] = batch[name] * weight + y * (1 - weight)
            else:
                batch[other_name(name)] = y
        return {**batch, MIX_SHARE: share}


def _part(rows: Table, some: slice) -> Table:
    inputs, targets = ({name: t[some] for name, t in part.items()} for part in (rows.inputs, rows.targets))
    return Table(inputs, targets, rows.ids[some])


def to_input(world: World, name: str, values: Tensor, device: torch.device) -> Tensor:
    """Raw values of one input (N, ..) as a network sees them: on the device, normalised, images channels-last."""
    values = values.to(device)
    normalization = world.normalization.get(name)
    values = normalization.apply(values) if normalization is not None else values.float()
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values
