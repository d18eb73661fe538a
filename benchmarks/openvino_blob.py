"""What OpenVINO's compiled form saves when a build is loaded: python benchmarks/openvino_blob.py MODEL.onnx...

Loads each build in turn with and without the blob, and prints the median of 9 loads in milliseconds and both sizes.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from edgekd.runtimes.openvino_blob import BLOB, MANIFEST
from edgekd.runtimes.registry import runtime

LOADS = 9


def main() -> None:
    """One line for each model."""
    engine = runtime("openvino")
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            path = folder / engine.compile(Path(name), folder, device="CPU", threads=1, options={}).file
            if not (folder / BLOB).exists():
                print(f"{name}: no compiled form was kept")
                continue
            model = path.stat().st_size + path.with_suffix(".bin").stat().st_size
            facts, times = (folder / MANIFEST).read_text(), {"blob": [], "xml": []}
            for _ in range(LOADS):
                for kind, taken in times.items():
                    (folder / MANIFEST).write_text(facts if kind == "blob" else "{}")
                    start = time.perf_counter()
                    session = engine.load(path, device="CPU", threads=1)
                    taken.append((time.perf_counter() - start) * 1e3)
                    session.close()
            xml_ms, blob_ms = statistics.median(times["xml"]), statistics.median(times["blob"])
            sizes = f"blob {(folder / BLOB).stat().st_size} bytes, model {model} bytes"
            print(f"{name}: compile {xml_ms:.1f} ms, import {blob_ms:.1f} ms, {xml_ms / blob_ms:.1f} x; {sizes}")


if __name__ == "__main__":
    main()
