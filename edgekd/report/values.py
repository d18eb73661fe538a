"""The kinds of value in a report, and the base class of its parts."""

from __future__ import annotations

import math
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


def _encodable(value: Any) -> Any:
    # File names that are not UTF-8 reach error messages as lone surrogates, which JSON in UTF-8 cannot hold.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _finite_or_null(value: Any) -> Any:
    number = hasattr(value, "__float__")  # numpy's numbers too
    return None if number and not math.isfinite(value) else value


def _finite_pair_or_null(value: Any) -> Any:
    pair = isinstance(value, (list, tuple))
    return None if pair and any(_finite_or_null(v) is None for v in value) else value


def _relative(value: str) -> str:
    parts = PurePosixPath(value.replace("\\", "/")).parts
    if value.startswith("/") or PureWindowsPath(value).drive or ".." in parts:
        raise ValueError(f"{value!r} leads out of the run's folder")
    return value


Text = Annotated[str, BeforeValidator(_encodable)]
RelativePath = Annotated[str, AfterValidator(_relative)]
Measured = Annotated[float | None, BeforeValidator(_finite_or_null)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_finite_pair_or_null)]


class Part(BaseModel):
    """Base of everything in a report: frozen, and strict about names it does not know."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True, protected_namespaces=()
    )
