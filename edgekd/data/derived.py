"""Tables made of another: some of its rows, in some order, with columns of their own; its samples are not copied."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from edgekd.data.table import Rows, Table


@dataclass(frozen=True)
class Derived:
    """Rows of a resident or streamed table, which may repeat, with further targets. Made by `derive`.

    Attributes:
        base: a table that is not derived itself.
        rows: int64 (M,), rows of the base; on the CPU.
        columns: by name, (M, ..); each is a target, in place of the base's own of that name.
    """

    base: Rows
    rows: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        """Names, shapes and types alone, as of a streamed table: tensors on the device `meta`, (M, ..)."""
        count = len(self.rows)
        return {
            name: torch.empty(count, *x.shape[1:], dtype=x.dtype, device="meta") for name, x in self.base.inputs.items()
        }

    @property
    def targets(self) -> Mapping[str, Tensor]:
        own = {name: y[self.rows.to(y.device)] for name, y in self.base.targets.items() if name not in self.columns}
        return {**own, **self.columns}

    @property
    def ids(self) -> Tensor:
        return self.base.ids[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Tensor) -> Table:
        """The table of these rows of this table, int64 (K,), in this order."""
        return self._with_columns(self.base.take(self.rows[rows]), rows)

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        """The tables of several groups of rows, one after the other."""
        asked, given = itertools.tee(groups)  # a streamed base asks for some groups ahead
        return map(self._with_columns, self.base.batches(self.rows[rows] for rows in asked), given)

    def _with_columns(self, table: Table, rows: Tensor) -> Table:
        own = {name: y[rows.to(y.device)] for name, y in self.columns.items()}
        return Table(table.inputs, {**table.targets, **own}, table.ids) if own else table


def derive(table: Rows, rows: Tensor, columns: Mapping[str, Tensor] | None = None) -> Derived:
    """Some rows of a table, int64 (M,), with further targets (M, ..), each on the device where the samples are."""
    places = {x.device for x in table.inputs.values()} if isinstance(table, Table) else {torch.device("cpu")}
    device = next(iter(places), torch.device("cpu"))
    own = {name: y.to(device) for name, y in (columns or {}).items()}
    if not isinstance(table, Derived):
        return Derived(table, rows, own)
    kept = {name: y[rows.to(y.device)] for name, y in table.columns.items()}
    return Derived(table.base, table.rows[rows], {**kept, **own})


def origin(table: Rows) -> Rows:
    """The table whose samples these are."""
    return table.base if isinstance(table, Derived) else table
