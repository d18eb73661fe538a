"""A real OpenSSH server on loopback: keys made on the spot, a device of its own to log in to, ended by its pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
MISSING = "there is no sshd here: apt-get install openssh-server"


def make_key(path):
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A disk of its own of that size; skips the test where nobody may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "edgekd", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Server:
    """`tmp` is the device's folder for temporary files, `config` the client's ssh configuration, `env` what else is in
    the environment of its processes."""

    def __init__(self, folder: Path, tmp: Path | None = None, env: str = "") -> None:
        self.folder, self.tmp, self.env = folder, tmp or folder / "tmp", env
        self.config, self.known_hosts, self.log = folder / "config", folder / "known_hosts", folder / "sshd.log"
        folder.mkdir(exist_ok=True)
        self.tmp.mkdir(exist_ok=True)
        make_key(folder / "host")
        make_key(folder / "user")
        shutil.copy(folder / "user.pub", folder / "authorized")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"ssh://127.0.0.1:{self.port}"
        self.trust(folder / "host.pub")
        lines = ["Host *", f"IdentityFile {folder}/user", "IdentitiesOnly yes", "IdentityAgent none"]
        lines += [f"UserKnownHostsFile {self.known_hosts}", "GlobalKnownHostsFile /dev/null"]
        self.config.write_text("\n".join(lines) + "\n")
        self._write_settings()
        self.process = None
        self.start()

    def _write_settings(self):
        """The device's `device-python` is the one that runs here; `bare-python` has no packages at all."""
        bin_ = self.folder / "bin"
        bin_.mkdir()
        bare = bin_ / "bare-python"
        bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        bare.chmod(0o755)
        good = bin_ / "device-python"
        good.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        good.chmod(0o755)
        found = f"PATH={bin_}:/usr/bin:/bin TMPDIR={self.tmp}"
        settings = f"""Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {self.folder}/host
            PidFile none
            AuthorizedKeysFile {self.folder}/authorized
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            SetEnv {found} PYTHONPATH={Path(__file__).parent / "unit"} OMP_NUM_THREADS=1 {self.env}
            """
        (self.folder / "sshd_config").write_text("\n".join(line.strip() for line in settings.splitlines()))

    def trust(self, public):
        kind, key, *_ = public.read_text().split()
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self):
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where a server of root's gives up its rights
        with self.log.open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def cut(self):
        """Break every connection that is open; the server takes new ones."""
        self.signal_sessions(signal.SIGKILL)

    def signal_sessions(self, number):
        """Send a signal to the processes that serve open connections. Stopped, they are as silent as a lost network."""
        for pid in self._children(self.process.pid):
            for session in [*self._children(pid), pid]:
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it may end by itself meanwhile
                    if b"sshd" in (Path("/proc") / str(session) / "comm").read_bytes():
                        os.kill(session, number)

    @staticmethod
    def _children(pid):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(stat.parent.name))
        return found

    def stop(self):
        """End it by its pid, and wait for it."""
        self.cut()
        self.process.terminate()
        self.process.wait(timeout=20)

    def left_behind(self):
        """What lies in the device's temporary folder after at most 20 seconds."""
        end = time.monotonic() + 20
        while list(self.tmp.iterdir()) and time.monotonic() < end:
            time.sleep(0.1)
        return list(self.tmp.iterdir())


def is_gone(pid, within_s=20):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
