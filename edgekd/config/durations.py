"""Durations as people write them: "30m", "90s", "1h", "5ms"."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_KNOWN = 'write e.g. "30m", "90s", "1h" or "5ms"'


def seconds(text: str) -> float:
    """A duration in seconds; raises ValueError, with a hint after ` | `, for what is none."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]+)\s*", text, re.ASCII)
    value = float(found[1]) * _SECONDS.get(found[2], math.nan) if found else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no duration | {_KNOWN}")
    return value


def _in_seconds(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


def _in_milliseconds(value: Any) -> Any:
    return seconds(value) * 1e3 if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_in_seconds)]
"""A field of seconds: a number, or a text with a unit."""
Milliseconds = Annotated[float, BeforeValidator(_in_milliseconds)]
"""A field of milliseconds: a number, or a text with a unit."""
