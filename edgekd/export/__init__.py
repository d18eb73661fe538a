"""ONNX: export, flavours for each engine, parity."""
