"""Read the profile that ONNX Runtime writes: which node took how long, on which provider, on what kind of numbers.

Python 3.8, the standard library and numpy, as all of runtimes/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.runtimes.onnxruntime_providers import CPU, short
from edgekd.runtimes.protocol import LayerTime, executed_name, median_ms

_ENDING = "_kernel_time"
# How nodes begin that stand for a whole part of the graph: what is inside is the provider's own business.
_WHOLE = ("TRTKernel", "MGXKernel", "CoreML_", "QNN_", "DmlFused")


@dataclass(frozen=True)
class Node:
    """A node that ran: where it did, and the precision of what it reads ("unknown" inside a part that was handed over
    as a whole)."""

    name: str
    kind: str
    provider: str
    precision: str
    times_ms: Sequence[float]


def read_nodes(path: Path) -> list[Node]:
    """The nodes of a profile in the order in which they first ran, each with all its times.

    Nodes are told apart by their index in the graph, for names may be empty or given twice.
    """
    found: dict[tuple[str, str], tuple[Mapping[str, Any], list[float]]] = {}
    for event in json.loads(path.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_ENDING):
            key = (str(event["args"].get("node_index")), name)
            found.setdefault(key, (event["args"], []))[1].append(float(event["dur"]) / 1e3)
    return [
        Node(name[: -len(_ENDING)], str(args["op_name"]), str(args["provider"]), _precision(args), times)
        for (_, name), (args, times) in found.items()
    ]


def layer_times(nodes: Sequence[Node], provider: str, runs: int) -> tuple[LayerTime, ...]:
    """The medians over the last `runs`; the kind of a node that fell back to the CPU says so."""
    return tuple(
        LayerTime(node.name, kind(node, provider), node.precision, median_ms(node.times_ms[-runs:])) for node in nodes
    )


def kind(node: Node, provider: str) -> str:
    """The operation, and where it ran if that is not where it was to."""
    return node.kind if node.provider == provider else f"{node.kind} (on {short(node.provider)})"


def fallen_back(nodes: Sequence[Node], provider: str) -> list[Node]:
    """Nodes that ran on the CPU though another provider was asked for."""
    return [node for node in nodes if provider != CPU and node.provider == CPU]


def _precision(args: Mapping[str, Any]) -> str:
    if str(args["op_name"]).startswith((str(args["provider"]), *_WHOLE)):
        return "unknown"
    shapes = args.get("input_type_shape") or args.get("output_type_shape") or [{}]
    return executed_name(next(iter(shapes[0]), ""))
