"""The parity ladder: from PyTorch to each engine rung by rung, on the same samples, and where a rung breaks.

PyTorch, float -> PyTorch, fake-quantized -> the ONNX file as it is written -> ONNX Runtime, optimized -> each build
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.errors import EdgekdError
from edgekd.export import parity
from edgekd.export.forks import Anchor, Fork, off, paired, with_outputs
from edgekd.export.onnx_file import load
from edgekd.export.parity import Arrays, Parity
from edgekd.runtimes.protocol import Runtime, infer
from edgekd.tasks import HeadSettings
from edgekd.tasks.task import Score
from edgekd.train.evaluate import score_outputs
from edgekd.train.world import World


@dataclass
class Ladder:
    """Rungs as they are climbed: each is held against an earlier one, and scored where there are targets."""

    world: World
    targets: Mapping[str, Tensor]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def climb(
        self,
        rung: str,
        outputs: Arrays,
        against: str = "",
        reference: Arrays | None = None,
        targets: Mapping[str, Tensor] | None = None,
    ) -> Parity | None:
        """Add a rung; outputs may be of the first samples only. What it was held against is handed back.

        `targets`: those of the samples, where they are not the first of the table.
        """
        n = len(next(iter(outputs.values())))
        row: dict[str, Any] = {"rung": rung, "against": against or None, "n": n}
        found = None
        if reference is not None:
            right = {name: values[:n] for name, values in reference.items()}
            found = parity.compare(outputs, right, {head.output: head.task for head in self.world.heads})
            row |= {"max_abs_error": found.max_abs_error, "agreement": min(found.agreement.values())}
        scores = self._scores(outputs, n, self.targets if targets is None else targets)
        self.rows.append(row | {name: score.value for name, score in scores.items()})
        return found

    def _scores(self, outputs: Arrays, n: int, targets: Mapping[str, Tensor]) -> Mapping[str, Score]:
        heads: Sequence[HeadSettings] = [head for head in self.world.heads if head.target in targets]
        if not heads:
            return {}
        found = {name: torch.from_numpy(np.asarray(values, dtype=np.float32)) for name, values in outputs.items()}
        return score_outputs(self.world, found, {name: values[:n] for name, values in targets.items()})


def engine_fork(
    engine: Runtime,
    onnx: Path,
    feeds: Mapping[str, NDArray[Any]],
    expected: Sequence[Anchor],
    limit: float,
    *,
    device: str,
    options: Mapping[str, Any],
) -> Fork | None:
    """The first tensor that an engine computes otherwise than the file says, by bisecting the graph.

    The file is built again with one tensor inside shown as an output, as often as it takes; engines fuse what is not
    shown, so a few builds tell less about the tensors before. None: no build shows a difference.
    """
    model = load(onnx)
    pairs = paired(model, expected)
    right = parity.run_reference(with_outputs(model, [name for name, _ in pairs]).SerializeToString(), feeds)

    def error(index: int) -> float:
        name = pairs[index][0]
        with tempfile.TemporaryDirectory() as scratch:
            shown = Path(scratch) / "shown.onnx"
            shown.write_bytes(with_outputs(model, [name]).SerializeToString())
            build = engine.compile(shown, Path(scratch), device=device, threads=1, options=options)
            session = engine.load(Path(scratch) / build.file, device=device, threads=1)
            found = infer(session, feeds).get(name)
            session.close()
        return 0.0 if found is None or found.shape != right[name].shape else off(found, right[name])

    index = _first(len(pairs), lambda i: not error(i) <= limit)
    return Fork(pairs[index][0], pairs[index][1].module, error(index)) if index is not None else None


def _first(count: int, broken: Callable[[int], bool]) -> int | None:
    """The first of so many that is broken, if all behind it are; None if the last one is not."""
    try:
        if not count or not broken(count - 1):
            return None
        low, high = 0, count - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if broken(middle) else (middle + 1, high)
    except EdgekdError:  # an engine that refuses the graph with more outputs: there is nothing to tell
        return None
    return low
