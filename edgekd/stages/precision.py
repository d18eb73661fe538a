"""Which ONNX flavour each build of a target is made of, and what has to be known for it (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.runtimes.registry import FLAVOURS
from edgekd.stages.settings import TargetSettings

# Flavours that are rewritten from an exported file when a build is compiled: from which, and into what.
REWRITTEN = {"f16": ("f32", "f16"), "bf16": ("f32", "bf16"), "int8_f16": ("int8", "f16")}


def origin_of(flavour: str) -> str:
    """The exported flavour that another one is rewritten from; itself, where it is exported."""
    return REWRITTEN[flavour][0] if flavour in REWRITTEN else flavour


def searched(targets: Mapping[str, TargetSettings]) -> tuple[str, ...]:
    """Exported flavours of which targets want a float16 form: in these, what does not fit float16 has to be found."""
    wanted = {FLAVOURS[t.runtime][precision] for t in targets.values() for precision in t.precisions}
    return tuple(sorted({origin for name, (origin, half) in REWRITTEN.items() if half == "f16" and name in wanted}))
