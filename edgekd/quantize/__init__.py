"""Quantization: placement, learnable fake-quant, calibration, conversion to Q/DQ."""
