"""A device over ssh, against a real server on loopback: what is measured there, what is refused, what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ssh_server

from edgekd.bench.measure import Subject, measure_rows
from edgekd.bench.settings import BenchSettings
from edgekd.bench.targets import connection, keeper
from edgekd.bench.targets.address import parse_address
from edgekd.bench.targets.connection import Connection
from edgekd.bench.targets.ssh import SshTarget
from edgekd.errors import BenchError, ConfigError, StageError, TryAgainError, UnavailableError

FAKE = "fake_runtime:FakeRuntime"
BRIEF = BenchSettings(quick=True, launches=1, min_time_s=0.3, min_samples=20, quiet_wait_s=0.0, profile=False)
needs_sshd = pytest.mark.skipif(ssh_server.SSHD is None, reason=ssh_server.MISSING)


def target(server, **more):
    given = {"config": server.config, "waits_s": (), "pythons": ("device-python",), **more}
    return SshTarget(parse_address(server.url), **given)


def subject(tmp_path, name="student", **told):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(told))
    (folder / "weights.bin").write_bytes(b"\0" * 1000)
    return Subject(name, "pi", FAKE, "CPU", "f32", folder / "model.json")


def bench(tmp_path, server, *subjects, settings=BRIEF, progress=lambda line: None, **more):
    feeds, folder = {"x": np.zeros((1, 3))}, tmp_path / "out"
    on = target(server, **more)
    rows = measure_rows(subjects, feeds, settings=settings, folder=folder, seed=1, progress=progress, on=on)
    return rows.latency, rows.comparisons


def test_builds_are_measured_interleaved_on_the_device(server, tmp_path):
    fast, slow = subject(tmp_path, sleep_ms=2), subject(tmp_path, "teacher", sleep_ms=4)
    rows, (pair,) = bench(tmp_path, server, fast, slow, settings=BRIEF.model_copy(update={"profile": True}))
    assert 2.0 <= rows[0]["p50_ms"] < rows[1]["p50_ms"]
    assert pair["ratio"] < 0.8
    with np.load(tmp_path / "out" / rows[0]["samples_path"]) as samples:
        assert samples["0/wall_ns"].size == rows[0]["n"]
    layers = json.loads((tmp_path / "out" / "layers.json").read_text())["rows"]
    assert {row["target"] for row in layers} == {"pi"}


def test_probe_says_what_the_device_has_and_what_it_lacks(server):
    facts = target(server).probe([FAKE, "tensorrt"])
    assert facts["engines"] == {FAKE: "found", "tensorrt": None}
    assert facts["numpy"] == np.__version__
    assert facts["memory_free_bytes"] > 0
    assert facts["disk_free_bytes"] > 0
    (lack,) = facts["missing"]
    assert lack["what"] == "tensorrt"
    assert lack["command"].startswith(f"ssh -p {server.port} 127.0.0.1 ")
    assert "-m pip install tensorrt" in lack["command"]


def test_first_python_with_everything_is_taken(server):
    both = target(server, pythons=("no-such-python", "bare-python", "device-python"))
    with both.open([FAKE]) as place:
        assert place.python.path.endswith("/device-python")


def test_missing_numpy_and_missing_engine_name_the_command(server):
    with (
        pytest.raises(UnavailableError, match=r"has no numpy") as caught,
        target(server, python="bare-python").open([FAKE]),
    ):
        pass
    assert "pip install numpy" in caught.value.hint
    with pytest.raises(UnavailableError, match=r"has no tensorrt") as caught, target(server).open(["tensorrt"]):
        pass
    assert "pip install tensorrt" in caught.value.hint


def test_no_python_is_unavailable(server):
    with pytest.raises(UnavailableError, match=r"has no Python 3.8 or later .looked for no-such-python") as caught:
        target(server, pythons=("no-such-python",)).probe([])
    assert "apt-get install python3" in caught.value.hint


NASTY = [
    "with space.bin",
    "a'b\"c.bin",
    ";touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "-rf",
    "ä&|<>*?\\n.bin",
    "a/b c",
]


def test_names_of_files_are_data(server, tmp_path):
    sent, back = tmp_path / "sent", tmp_path / "back"
    with target(server).open([]) as place:
        there = Path(place.connection.folder)
        for name in NASTY:
            sent.write_bytes(os.urandom(70_000))
            place.push(sent, name)
            place.fetch(name, back)
            assert (there / name).read_bytes() == sent.read_bytes() == back.read_bytes()
        assert not [path for path in there.parent.rglob("*") if path.name == "pwned"]


def test_folder_of_a_build_with_a_nasty_name_is_measured(server, tmp_path):
    folder = tmp_path / "a b;$(touch pwned)"
    folder.mkdir()
    path = folder / "model 'x'.json"
    path.write_text(json.dumps({"sleep_ms": 1}))
    (row,), _ = bench(tmp_path, server, Subject("student", "pi", FAKE, "CPU", "f32", path))
    assert row["p50_ms"] >= 1.0


def test_unknown_host_shows_the_fingerprint_and_how_to_accept_it(server):
    server.known_hosts.write_text("")
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(server.folder / "host.pub")], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    with pytest.raises(UnavailableError, match=r"host key of .* is unknown") as caught:
        target(server, waits_s=(60.0,)).probe([])
    assert shown in caught.value.message
    assert "ssh -F" in caught.value.hint
    assert "StrictHostKeyChecking=ask" in caught.value.hint
    assert server.known_hosts.read_text() == ""


def test_wrong_host_key_shows_the_fingerprint_and_how_to_forget_the_old_one(server):
    server.trust(server.folder / "user.pub")
    with pytest.raises(UnavailableError, match="has another host key than the known one: it shows SHA256:") as caught:
        target(server, waits_s=(60.0,)).probe([])
    assert f"-R '[127.0.0.1]:{server.port}'" in caught.value.hint
    assert caught.value.exit_code == 3


def test_refused_login_says_how_to_bring_a_key(server, tmp_path):
    ssh_server.make_key(tmp_path / "stranger")
    config = tmp_path / "config"
    config.write_text(server.config.read_text().replace(f"{server.folder}/user", f"{tmp_path}/stranger"))
    with pytest.raises(UnavailableError, match=r"refused the login: .*Permission denied") as caught:
        target(server, config=config, waits_s=(60.0,)).probe([])
    assert caught.value.hint.endswith(f"ssh-copy-id -p {server.port} 127.0.0.1")


def test_device_that_is_off_is_tried_again_and_then_later(server, monkeypatch):
    tries, connect = [], Connection.open
    monkeypatch.setattr(Connection, "open", lambda self: tries.append(self) or connect(self))
    off = SshTarget(parse_address("ssh://127.0.0.1:1"), config=server.config, waits_s=(0.01, 0.02))
    with pytest.raises(TryAgainError, match=r"cannot be reached: .*refused") as caught:
        off.probe([])
    assert len(tries) == 3
    assert caught.value.exit_code == 75


def test_cut_connection_is_opened_again_and_the_launch_repeated(server, tmp_path):
    cuts = []

    def cut_once(line):
        if line.endswith("measuring") and not cuts:
            cuts.append(line)
            server.cut()

    (row,), _ = bench(tmp_path, server, subject(tmp_path, sleep_ms=2), progress=cut_once, waits_s=(0.1,))
    assert cuts
    assert row["p50_ms"] >= 2.0


def test_connection_that_is_cut_every_time_is_for_later(server, tmp_path):
    def cut(line):
        if line.endswith("measuring"):
            server.cut()

    with pytest.raises(TryAgainError, match=r"connection to .* was lost"):
        bench(tmp_path, server, subject(tmp_path, sleep_ms=2), progress=cut, waits_s=(0.1,))


def test_connection_that_falls_silent_is_given_up_and_the_device_cleans_up(server, tmp_path, monkeypatch):
    seconds = {
        option: option.replace("ServerAliveInterval=5", "ServerAliveInterval=1") for option in connection._OPTIONS
    }
    monkeypatch.setattr(connection, "_OPTIONS", tuple(seconds.values()))

    def silence(line):
        if line.endswith("measuring"):
            server.signal_sessions(signal.SIGSTOP)

    settings = BRIEF.model_copy(update={"min_time_s": 60.0})
    try:
        with pytest.raises(TryAgainError, match=r"connection to .* was lost"):
            bench(tmp_path, server, subject(tmp_path, sleep_ms=2), settings=settings, progress=silence)
    finally:
        server.signal_sessions(signal.SIGCONT)
    assert server.left_behind() == []


def test_killed_client_leaves_neither_process_nor_folder(server, tmp_path):
    pid_file = tmp_path / "pid"
    subject(tmp_path, sleep_ms=600_000, pid_file=str(pid_file))
    script = f"""
from pathlib import Path
from edgekd.bench.targets.address import parse_address
from edgekd.bench.targets.connection import Connection
from edgekd.bench.targets.ssh import SshTarget
import numpy, sys
target = SshTarget(parse_address({server.url!r}), config=Path({str(server.config)!r}), pythons=("device-python",))
numpy.savez({str(tmp_path / "feeds.npz")!r}, x=numpy.zeros((1, 3), numpy.float32))
with target.open([{FAKE!r}]) as place:
    feeds = place.push(Path({str(tmp_path / "feeds.npz")!r}), "feeds.npz")
    path = place.push_build(Path({str(tmp_path / "student" / "model.json")!r}), "model")
    model = dict(name="m", runtime={FAKE!r}, device="CPU", threads=1, path=path)
    place.run(dict(mode="memory", models=[model], feeds=feeds), limit_s=600, progress=print)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as client:
        end = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < end:
            time.sleep(0.05)
        agent = int(pid_file.read_text())
        assert len(list(server.tmp.iterdir())) == 1
        client.send_signal(signal.SIGKILL)
    assert ssh_server.is_gone(agent)
    assert server.left_behind() == []


def test_agent_that_takes_too_long_is_ended_on_the_device(server, tmp_path):
    pid_file = tmp_path / "pid"
    endless = subject(tmp_path, sleep_ms=600_000, pid_file=str(pid_file))
    with pytest.raises(BenchError, match="ended after 3 s"):
        bench(tmp_path, server, endless, settings=BRIEF.model_copy(update={"time_limit_s": 3.0}))
    assert ssh_server.is_gone(int(pid_file.read_text()))


def test_engine_that_fails_on_the_device_is_one_line(server, tmp_path):
    with pytest.raises(BenchError, match="fake cannot read this file") as caught:
        bench(tmp_path, server, subject(tmp_path, refuse=True))
    assert caught.value.hint == "make another"


@needs_sshd
def test_full_disk_of_the_device_is_a_failure_in_words(tmp_path):
    with ssh_server.small_disk(tmp_path / "disk", "512k") as disk:
        server = ssh_server.Server(tmp_path / "device", tmp=disk)
        large = tmp_path / "large"
        large.write_bytes(os.urandom(1_000_000))
        try:
            with pytest.raises(StageError, match="no space left on the disk of the device"):  # noqa: SIM117
                with target(server).open([]) as place:
                    place.push(large, "large")
            assert server.left_behind() == []
        finally:
            server.stop()


@pytest.mark.parametrize("silent", [True, False])
def test_device_that_hears_nothing_ends_what_runs_there_and_cleans_up(tmp_path, silent):
    source = Path(keeper.__file__).read_text()
    assert "SILENCE_S = 60.0" in source
    source = source.replace("SILENCE_S = 60.0", "SILENCE_S = 0.5" if silent else "SILENCE_S = 600.0")
    pipe, env = subprocess.PIPE, {**os.environ, "TMPDIR": str(tmp_path)}
    with (
        subprocess.Popen([sys.executable, "-c", source], stdin=pipe, stdout=pipe, env=env) as kept,
        subprocess.Popen(["sleep", "600"], start_new_session=True) as busy,
    ):
        folder = Path(json.loads(kept.stdout.readline().partition(b" ")[2]))
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "job.pid").write_text(str(busy.pid))
        if not silent:
            kept.stdin.close()
        assert busy.wait(timeout=20) == -signal.SIGKILL
        assert kept.wait(timeout=20) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ssh://pi@raspberrypi.local:2222", ["-l", "pi", "-p", "2222", "--", "raspberrypi.local"]),
        ("ssh://Alias", ["--", "Alias"]),
        ("ssh://root@[fe80::1]:22", ["-l", "root", "-p", "22", "--", "fe80::1"]),
    ],
)
def test_addresses_become_arguments(text, words):
    address = parse_address(text)
    assert address.words == words
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pi@raspberrypi", "is no address"),
        ("http://pi", "is no address"),
        ("ssh://pi:secret@host", "a password stands in the address"),
        ("ssh://host/path", "ends with host or port"),
        ("ssh://host:none", "is no address"),
        ("ssh://-oProxyCommand=touch", "characters that no name has"),
        ("ssh://-x@host", "characters that no name has"),
        ("ssh://a b", "characters that no name has"),
    ],
)
def test_what_is_no_address_is_refused_without_its_password(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_address(text)
    assert "secret" not in caught.value.message
