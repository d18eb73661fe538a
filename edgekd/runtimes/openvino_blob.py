"""OpenVINO's own compiled form beside model.xml, so that loading does not optimize the graph again.

It is only a copy of what is there: a blob of another version, processor, driver or option set is passed over without a
word, and model.xml is compiled. Python 3.8, the standard library and numpy, as all of runtimes/.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOB, MANIFEST = "model.blob", "model.blob.json"
# They choose among devices when they load; what they exported would not fit the next choice.
VIRTUAL = ("AUTO", "HETERO", "MULTI", "BATCH")
# Of `_properties`, what may differ between compiling and loading: an engine sets it anew when it imports.
_MAY_DIFFER = {"INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERF_COUNT"}


def keep(core: Any, compiled: Any, folder: Path, *, device: str, properties: Mapping[str, Any], same: Any) -> bool:
    """Export a compiled model into its build's folder, if the device can, and if it comes back as it was.

    Args:
        same: says whether two compiled models run the same layers in the same precision and answer the same.

    Returns:
        Whether the blob was kept.
    """
    if not _can_export(core, device):
        return False
    blob = _bytes(compiled.export_model())
    try:
        if not same(compiled, core.import_model(blob, device, dict(properties))):
            return False
    except RuntimeError:
        return False
    facts = {**_facts(core, folder / "model.xml", device, properties), "blob": hashlib.sha256(blob).hexdigest()}
    (folder / BLOB).write_bytes(blob)
    (folder / MANIFEST).write_text(json.dumps(facts, indent=1, sort_keys=True))
    return True


def find(core: Any, model: Path, *, device: str, properties: Mapping[str, Any]) -> Any:
    """The compiled model of the blob beside `model`, or None where there is none that fits this engine and device."""
    try:
        known = json.loads((model.parent / MANIFEST).read_text())
        blob = (model.parent / BLOB).read_bytes()
        here = {**_facts(core, model, device, properties), "blob": hashlib.sha256(blob).hexdigest()}
    except (OSError, ValueError):
        return None
    if known != here:
        return None
    try:
        return core.import_model(blob, device, dict(properties))
    except RuntimeError:
        return None


def same_answers(a: Any, b: Any, feeds: Mapping[str, NDArray[Any]]) -> bool:
    """Whether two compiled models give the very same outputs."""
    left, right = a(dict(feeds)), b(dict(feeds))
    pairs = zip(left.values(), right.values())  # noqa: B905  3.8 has no strict=
    return len(left) == len(right) and all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def same_layers(a: Any, b: Any) -> bool:
    """Whether two lists of layers hold the same kinds in the same precisions; names are numbered anew each time."""
    return Counter((x.kind, x.precision) for x in a) == Counter((x.kind, x.precision) for x in b)


def _can_export(core: Any, device: str) -> bool:
    if device.split(":", 1)[0] in VIRTUAL:
        return False
    return "EXPORT_IMPORT" in core.get_property(device, "OPTIMIZATION_CAPABILITIES")


def _facts(core: Any, model: Path, device: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be equal for a blob to be the compiled form of `model` here."""
    plugin = core.get_versions(device)
    options = {key: str(value) for key, value in sorted(properties.items()) if key not in _MAY_DIFFER}
    digest = hashlib.sha256()
    for path in (model, model.with_suffix(".bin")):
        digest.update(path.read_bytes())
    return {
        "model": digest.hexdigest(),
        "device": device,
        "plugins": {name: version.build_number for name, version in plugin.items()},
        "full_name": str(core.get_property(device, "FULL_DEVICE_NAME")),
        "capabilities": sorted(core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
        "architecture": str(_property(core, device, "DEVICE_ARCHITECTURE")),
        "driver": str(_property(core, device, "NPU_DRIVER_VERSION" if device.startswith("NPU") else "DRIVER_VERSION")),
        "machine": platform.machine(),
        "processor": _processor() if device.startswith("CPU") else None,
        "options": options,
    }


def _property(core: Any, device: str, name: str) -> Any:
    """A property that not every device has."""
    try:
        return core.get_property(device, name)
    except RuntimeError:
        return None


def _processor() -> str | None:
    """Digest of the processor's model and instruction sets, where Linux tells them: kernels are chosen by these."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            head = stream.read(8192)
    except OSError:
        return platform.processor() or None
    wanted = r"^(?:model name|cpu family|model|stepping|flags|Features|CPU part)\s*:.*$"
    lines = dict.fromkeys(re.findall(wanted, head.split("\n\n", 1)[0], re.MULTILINE))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _bytes(exported: Any) -> bytes:
    """What `export_model` gives: a stream, or bytes in older versions."""
    return bytes(exported if isinstance(exported, (bytes, bytearray)) else exported.getvalue())
