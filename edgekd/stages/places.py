"""Where the builds of a target are made and evaluated: here, or on the device that it names (torch-free)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from edgekd.bench.targets.book import target_for
from edgekd.bench.targets.protocol import Place
from edgekd.stages.settings import TargetSettings


class Places:
    """The devices of a pipeline's targets, each connected when a stage first needs it, and left at the end.

    Engines may lie in different interpreters of a device: each has a connection of its own.
    """

    def __init__(self, targets: Mapping[str, TargetSettings]) -> None:
        self._targets = targets
        self._open: dict[tuple[str, str], Place] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def of(self, name: str) -> Place | None:
        """The place of a target; None: this machine."""
        host, runtime = self._targets[name].host, self._targets[name].runtime
        if host is None:
            return None
        if (host, runtime) not in self._open:
            self._open[host, runtime] = self._stack.enter_context(target_for(host).open([runtime]))
        return self._open[host, runtime]
