"""What an ONNX file says of itself: `edgekd.*` in its metadata_props, texts as they are and everything else as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

PREFIX = "edgekd."
_TEXTS = {"key", "role", "pipeline", "version", "flavour"}


def stamp(model: onnx.ModelProto, facts: Mapping[str, Any]) -> None:
    """Write facts into a model's metadata, in place; those of other names stay."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    known |= {PREFIX + name: value if name in _TEXTS else _json(value) for name, value in facts.items()}
    del model.metadata_props[:]
    for key in sorted(known):
        model.metadata_props.add(key=key, value=known[key])


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file of edgekd says of itself, by names without `edgekd.`; empty for a file of somebody else's.

    `key` and `role` of the network, `pipeline`, `version` of edgekd, `flavour`, `opset`, `preprocessing` by input,
    `heads` by output, `labels` by target, `accuracy` (known when the file was written, never on the test split).
    """
    model = onnx.load(str(path), load_external_data=False)
    known = {entry.key[len(PREFIX) :]: entry.value for entry in model.metadata_props if entry.key.startswith(PREFIX)}
    return {name: value if name in _TEXTS else json.loads(value) for name, value in known.items()}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
