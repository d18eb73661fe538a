"""edgekd: from a trained PyTorch network to a small, fast, verified artefact for an edge device."""

import os

__version__ = "0.1.0"

# ONNX Runtime reads this when it is imported, by whatever code: we never send anything.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
