"""Fixtures of the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from mistakes import Place


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Place:
    monkeypatch.chdir(tmp_path)
    for name in ("STORE", "STORE_MODE", "REMOTE_STORE", "LOG_FORMAT", "OFFLINE"):
        monkeypatch.delenv(f"EDGEKD_{name}", raising=False)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    return Place(tmp_path, capsys)
