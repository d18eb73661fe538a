"""A real OpenSSH server for the tests of a file."""

from __future__ import annotations

import pytest
import ssh_server


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    server = ssh_server.Server(tmp_path_factory.mktemp("device"))
    yield server
    server.stop()


@pytest.fixture
def server(running):
    """The server as it was before the last test changed what is known of it; nothing may be left there."""
    running.trust(running.folder / "host.pub")
    yield running
    assert running.left_behind() == []
