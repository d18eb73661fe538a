"""What all tests share: one torch thread, and where the optional shared material lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
_SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture
def shared() -> Path:
    """The folder with real images and a user's network, beside the repository; skips where it is not there."""
    if not _SHARED.is_dir():
        pytest.skip("the folder ../shared is not here: it holds real images and is not part of the repository")
    return _SHARED
