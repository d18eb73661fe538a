"""Hints that name a command name one that works."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest

from edgekd.errors import install_hint


class Installed:
    """What is known of an installed edgekd."""

    def __init__(self, origin: str | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{"url": "file:///home/me/edgekd", "dir_info": {"editable": true}}', "pip install -e '/home/me/edgekd[hf]'"),
        ('{"url": "file:///home/my%20own", "dir_info": {}}', "pip install '/home/my own[hf]'"),
        ('{"url": "https://host/edgekd.whl", "archive_info": {}}', "pip install 'edgekd[hf]'"),
        (None, "pip install 'edgekd[hf]'"),
        ("damaged", "pip install 'edgekd[hf]'"),
    ],
)
def test_an_extra_is_installed_from_where_edgekd_came_from(
    origin: str | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    assert install_hint("hf", "transformers") == command


def test_where_edgekd_is_no_package_the_hint_names_what_the_extra_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_hint("remote", "fsspec", "s3fs") == "pip install fsspec s3fs"
