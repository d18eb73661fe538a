"""Several processes that train one network: who is who, what each has a share of, and what they sum.

torchrun starts them (`edgekd run FILE --nproc N`, or torchrun itself on a cluster); gradients are averaged by torch's
DistributedDataParallel. Without torchrun there is one process, and everything here does nothing.
"""

from __future__ import annotations

import datetime
import math
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from edgekd.errors import UnavailableError
from edgekd.files import launched, processes_here

T = TypeVar("T")

# Ranks wait for rank 0 while it waits for another run's stage, and for each other while a teacher's cache is made.
_TIMEOUT = datetime.timedelta(hours=6)
_MEETING = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def shared(self, value: T) -> T:
        """What rank 0 has for this value."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def least(self, values: Tensor) -> Tensor:
        """The smallest of each value over all processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def gathered(self, rows: Tensor, start: int, total: int) -> Tensor:
        """The rows of all processes, (N, ..) to (total, ..), with gradients; these begin at `start`."""
        if self.count == 1:
            return rows
        from torch.distributed.nn.functional import all_reduce

        places = torch.arange(start, start + len(rows), device=rows.device)
        whole = rows.new_zeros(total, *rows.shape[1:]).index_copy(0, places, rows)
        result: Tensor = all_reduce(whole)  # type: ignore[no-untyped-call]
        return result

    def collected(self, rows: Tensor, total: int) -> Tensor:
        """Rows rank, rank + count, .. of a tensor on the CPU become the whole tensor (total, ..)."""
        if self.count == 1:
            return rows
        whole = rows.new_zeros(total, *rows.shape[1:])
        whole[self.rank :: self.count] = rows
        dist.all_reduce(whole)
        return whole

    def same_buffers(self, networks: Iterable[nn.Module]) -> None:
        """Running statistics are a process's own; from here on all have those of rank 0."""
        if self.count > 1:
            for network in networks:
                for buffer in network.buffers():
                    dist.broadcast(buffer, src=0)

    def wrap(self, objective: nn.Module, *, unused: bool) -> nn.Module:
        """The objective under DistributedDataParallel; `unused`: some parameters get no gradient."""
        from torch.nn.parallel import DistributedDataParallel

        # Buffers stay each process's own until `same_buffers`: banks of samples are large, and are alike anyway.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is not in older versions of torch
            return DistributedDataParallel(objective, find_unused_parameters=unused, broadcast_buffers=False)

    def barrier(self) -> None:
        """Wait for all."""
        if self.count > 1:
            dist.barrier()


def current() -> Ranks:
    """This process's place; one process alone unless `join` was called."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def join() -> Ranks:
    """Meet the other processes that torchrun started: gloo on CPUs, NCCL between GPUs.

    Raises:
        UnavailableError: this machine has fewer GPUs than processes.
    """
    if launched() and not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        if cuda and torch.cuda.device_count() < processes_here():
            raise UnavailableError(
                f"{processes_here()} processes on a machine with {torch.cuda.device_count()} GPUs",
                hint="start one for each GPU: --nproc",
            )
        store, rank, count = next(rendezvous("env://", timeout=_MEETING))
        # torchrun keeps its store over restarts: without a prefix of its own, a restarted process would look for the
        # dead ones at the addresses that they left there.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_TIMEOUT)
    return current()


def local_device() -> int:
    """Number of the GPU that is this process's own on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


@dataclass(frozen=True)
class Shares:
    """How an epoch's rows fall into steps, and each step into equal parts: no row twice, none left out.

    Steps are as large as `batch`, or smaller by as little as makes them equal: a rest of a few rows would be a step of
    its own with BatchNorm over a few rows.

    Attributes:
        rows: rows of an epoch.
        batch: most rows of a step, over all processes and all parts.
        accumulate: parts that one process works off one after the other.
    """

    rows: int
    batch: int
    accumulate: int
    ranks: Ranks

    @property
    def parts(self) -> int:
        """Parts of a step over all processes."""
        return self.ranks.count * self.accumulate

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return max(min(math.ceil(self.rows / self.batch), self.rows // self.parts), 1)

    @property
    def largest(self) -> int:
        """Rows of the largest part."""
        return math.ceil(math.ceil(self.rows / self.steps) / self.parts)

    def step(self, number: int) -> tuple[int, int]:
        """First row of a step, and the row after its last."""
        return self.rows * number // self.steps, self.rows * (number + 1) // self.steps

    def part(self, number: int, turn: int, rank: int) -> tuple[int, int]:
        """The part of a step that a process takes in its turn: first row, and the row after the last."""
        start, stop = self.step(number)
        place = rank * self.accumulate + turn
        return start + (stop - start) * place // self.parts, start + (stop - start) * (place + 1) // self.parts

    def mine(self) -> list[tuple[int, int]]:
        """All parts of this process in the order of the epoch."""
        own = self.ranks.rank
        return [self.part(number, turn, own) for number in range(self.steps) for turn in range(self.accumulate)]
