"""Processors whose products of uint8 and int8 saturate: x86 without VNNI adds two of them in 16 bits (vpmaddubsw).

With weights of 7 bits (`quantize.overflow_fix`) they cannot: 255 * 63 * 2 < 2^15. ONNX Runtime has a slower way around
it, OpenVINO has none.
"""

from __future__ import annotations

import platform

HINT = "this processor has no VNNI, and sums of 8-bit products overflow: set `quantize.overflow_fix: all`"


def saturates() -> bool:
    """Whether this machine's processor is one of them; False where the system does not tell."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            line = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    flags = set(line.split())
    return bool(flags) and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}
