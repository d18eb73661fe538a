"""edgekd: from a trained PyTorch network to a small, fast, verified artefact for an edge device."""

__version__ = "0.1.0"
