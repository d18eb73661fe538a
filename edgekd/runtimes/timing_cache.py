"""TensorRT's timing cache in a file: what one build timed, the next one need not. Python 3.8, the standard library."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any


def usual_place(version: str, gpu_name: str | None) -> Path:
    """In the user's cache folder, one file for each TensorRT and GPU: times of another would be of no use."""
    name = re.sub(r"[^\w.-]+", "_", f"tensorrt-{version}-{gpu_name or 'gpu'}")
    return user_cache() / "timing" / f"{name}.cache"


def user_cache() -> Path:
    """The folder for what saves the user time and can be lost."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekd"


def take(config: Any, path: Path) -> None:
    """Give a build the times of earlier ones; a file that is missing, broken or of another GPU is begun anew."""
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    for content in (known, b"") if known else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return


def keep(config: Any, path: Path) -> None:
    """Add the times of this build to the file. Builds of other processes may have written it meanwhile."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        meanwhile = config.create_timing_cache(path.read_bytes()) if path.is_file() else None
        if meanwhile is not None:
            cache.combine(meanwhile, False)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(bytes(cache.serialize()))
        os.replace(temporary, path)
    except OSError:
        return  # a cache that cannot be written costs time, nothing else
