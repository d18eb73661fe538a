"""The bench stage with several devices: each measures in a thread of its own, and their rows are kept apart."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest
import ssh_server

from edgekd.bench.targets.address import parse_address
from edgekd.bench.targets.book import Device, add_device
from edgekd.errors import BenchError
from edgekd.stages import bench
from edgekd.stages.settings import BenchStage

FAKE = "fake_runtime:FakeRuntime"
BRIEF = BenchStage(
    quick=True, launches=2, min_time_s=0.3, min_samples=20, quiet_wait_s=0.0, profile=False, time_limit_s=120.0
)


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """Two devices, of which the second is slower by 8 ms a call; a configuration that knows both, and their names."""
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    folder = tmp_path_factory.mktemp("devices")
    fast, slow = ssh_server.Server(folder / "fast"), ssh_server.Server(folder / "slow", env="FAKE_LOAD_MS=8")
    config = folder / "config"
    keys = "\n".join(f"IdentityFile {server.folder}/user" for server in (fast, slow))
    known = f"UserKnownHostsFile {fast.known_hosts} {slow.known_hosts}"
    config.write_text(f"Host *\n{keys}\nIdentitiesOnly yes\nIdentityAgent none\n{known}\n")
    for name, server in (("fast", fast), ("slow", slow)):
        add_device(folder / "targets.json", name, Device(parse_address(server.url), "device-python"))
    yield SimpleNamespace(fast=fast, slow=slow, config=config, book=folder / "targets.json")
    left = [*fast.left_behind(), *slow.left_behind()]
    fast.stop()
    slow.stop()
    assert left == []


@pytest.fixture
def stage(devices, tmp_path, monkeypatch):
    """Runs the stage for one build on the hosts of some targets."""
    monkeypatch.setenv("EDGEKD_SSH_CONFIG", str(devices.config))
    monkeypatch.setenv("EDGEKD_TARGETS", str(devices.book))

    def run(hosts, told, tell=lambda line: None):
        builds = []
        for name in hosts:
            (tmp_path / "compiled" / name).mkdir(parents=True)
            (tmp_path / "compiled" / name / "model.json").write_text(json.dumps(told.get(name, {"sleep_ms": 2})))
            info = {"name": "x", "dtype": "float32", "shape": [-1, 3]}
            build = {"target": name, "runtime": FAKE, "device": "CPU", "model": "student", "precision": "f32"}
            builds.append({**build, "folder": name, "file": "model.json", "inputs": [info]})
        compiled = SimpleNamespace(facts={"builds": builds}, path=lambda file: tmp_path / "compiled" / file)
        (tmp_path / "draft").mkdir()
        context = SimpleNamespace(
            common=SimpleNamespace(targets={n: SimpleNamespace(host=h) for n, h in hosts.items()}, seed=0),
            inputs={"compile": compiled},
            draft=SimpleNamespace(folder=tmp_path / "draft", facts={}),
            options=lambda kind: BRIEF,
            tell=tell,
        )
        bench.run(context)
        return context.draft.facts

    return run


def test_two_devices_measure_at_one_time_and_their_rows_stay_apart(stage, tmp_path):
    threads = set()

    def tell(line):
        threads.add(threading.current_thread().name)

    # Each model is loaded only once the other one is being loaded, too: one device after the other would never end.
    slow_began, fast_began = (str(tmp_path / name) for name in ("slow-began", "fast-began"))
    told = {
        "a": {"sleep_ms": 2, "pid_file": slow_began, "wait_for": fast_began},
        "b": {"sleep_ms": 2, "pid_file": fast_began, "wait_for": slow_began},
    }
    facts = stage({"a": "slow", "b": "fast"}, told, tell)
    slow, fast = facts["latency"]
    assert (slow["target"], slow["host"]) == ("a", "slow")
    assert (fast["target"], fast["host"]) == ("b", "fast")
    assert slow["p50_ms"] >= 10
    assert fast["p50_ms"] < slow["p50_ms"]
    assert slow["samples_path"].startswith("a/")
    assert len(threads) == 2


def test_two_names_of_one_device_share_its_thread(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_TARGETS", str(tmp_path / "targets.json"))
    for name, user in (("pi", "pi"), ("pi-too", "other")):
        add_device(tmp_path / "targets.json", name, Device(parse_address(f"ssh://{user}@pi.local:22")))
    hosts = {"a": "pi", "b": None, "c": "ssh://nano", "d": "pi-too"}
    common = SimpleNamespace(targets={name: SimpleNamespace(host=host) for name, host in hosts.items()})
    assert bench._by_device(SimpleNamespace(common=common)) == [["a", "d"], ["c"]]


def test_failure_on_one_device_ends_the_other_and_is_what_is_told(stage, devices, tmp_path):
    pid_file = tmp_path / "pid"
    endless = {"sleep_ms": 600_000, "pid_file": str(pid_file)}
    with pytest.raises(BenchError, match="fake cannot read this file"):
        stage({"a": "slow", "b": "fast"}, {"a": endless, "b": {"refuse": True, "wait_for": str(pid_file)}})
    assert ssh_server.is_gone(int(pid_file.read_text()))
    assert devices.slow.left_behind() == []
