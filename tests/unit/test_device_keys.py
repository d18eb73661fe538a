"""Devices of a pipeline: what of them enters a key, what is remembered of one that is off, and what it is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edgekd.bench.pack import agent_digest
from edgekd.bench.remote import Made
from edgekd.bench.targets.ssh import SshTarget
from edgekd.errors import TryAgainError, UnavailableError
from edgekd.pipeline import devices
from edgekd.pipeline.devices import Devices
from edgekd.pipeline.keys import _targets
from edgekd.pipeline.schema import load_pipeline
from edgekd.runtimes import timing_cache
from edgekd.runtimes.protocol import Build, Layer, TensorInfo
from edgekd.stages import compile as compile_stage
from edgekd.stages.kinds import KINDS
from edgekd.stages.settings import CompileStage, TargetSettings
from edgekd.store import Store

FILE = """
name: device
data: {digits: {}}
model: convnet
stages: [export: {}, compile: {}, evaluate: {}, bench: {}]
targets:
  pi: {runtime: onnxruntime, precision: [f32], host: ssh://pi}
  here: {runtime: openvino, precision: [f32]}
"""
MACHINE = {
    "cpu": "Cortex-A76", "cores": 4, "memory_gib": 8, "gpu": None, "gpu_driver": None, "governor": "ondemand",
    "power_mode": "ondemand", "boost": None, "system": "Linux", "arch": "aarch64", "python": "3.11.2",
}  # fmt: skip


@pytest.fixture
def device(monkeypatch):
    """A device that answers as told; `off` takes it away."""
    told = SimpleNamespace(off=False, asked=[], machine=dict(MACHINE), engine="1.30", missing=[])

    def probe(self, runtimes):
        told.asked.append((str(self.address), tuple(runtimes), self.waits_s))
        if told.off:
            raise TryAgainError("ssh://pi cannot be reached: no route to host", hint="see that it is on")
        about = {"machine": dict(told.machine), "numpy": "2.4", "executable": "/usr/bin/python3", "python": "3.11.2"}
        return {**about, "engines": dict.fromkeys(runtimes, told.engine), "missing": told.missing}

    monkeypatch.setattr(SshTarget, "probe", probe)
    devices.forget()
    yield told
    devices.forget()


@pytest.fixture
def ask(tmp_path, device, monkeypatch):
    """What a stage's key holds of the targets, seen by a new process."""
    monkeypatch.setenv("EDGEKD_TARGETS", str(tmp_path / "targets.json"))

    def found(stage, text=FILE):
        devices.forget()
        (tmp_path / "p.yaml").write_text(text)
        pipeline = load_pipeline(tmp_path / "p.yaml")
        known = Devices(pipeline, Store(tmp_path / "store"))
        return {**_targets(pipeline, KINDS[stage], known, {}), **(known.measured_on() if stage == "bench" else {})}

    return found


def test_key_of_a_build_made_there_holds_the_device_its_engine_and_the_agent(ask, device):
    before = ask("compile")
    assert before["devices"]["pi"]["engine"] == "1.30"
    assert before["devices"]["pi"]["machine"]["arch"] == "aarch64"
    assert before["agent"] == agent_digest()
    device.machine["power_mode"] = device.machine["governor"] = "performance"
    assert ask("compile") == before
    device.machine["cpu"] = "Cortex-A72"
    assert ask("compile") != before


def test_engine_here_does_not_matter_for_what_is_done_there(ask):
    assert not [name for name in ask("compile")["packages"] if name.startswith("onnxruntime")]
    assert "openvino" in ask("compile")["packages"]
    text = FILE.replace("host: ssh://pi", "host: ssh://pi, compile_on: host")
    assert "onnxruntime" in ask("compile", text)["packages"]
    assert "devices" not in ask("compile", text)
    assert "devices" in ask("evaluate", text)


def test_equal_devices_share_builds_but_no_measurement(ask):
    other = FILE.replace("ssh://pi", "ssh://pi-2")
    assert ask("compile") == ask("compile", other)
    assert ask("evaluate") == ask("evaluate", other)
    assert ask("bench") != ask("bench", other)


def test_measurement_depends_on_the_power_mode_of_the_device(ask, device):
    before = ask("bench")
    device.machine["power_mode"] = "15W"
    assert ask("bench") != before


def test_device_that_is_off_counts_as_what_it_last_was_after_one_try(ask, device, tmp_path):
    before = ask("compile")
    device.off = True
    assert ask("compile") == before
    assert device.asked[-1][2] == ()
    known = Devices(load_pipeline(tmp_path / "p.yaml"), Store(tmp_path / "store"))
    known.measured_on()
    (note,) = known.notes()
    assert note.startswith("ssh://pi cannot be reached: what it was on 20")
    devices.forget()
    with pytest.raises(TryAgainError):
        known.require(["pi"])
    assert device.asked[-1][2]  # patiently


def test_device_that_was_never_seen_is_needed(ask, device):
    device.off = True
    with pytest.raises(TryAgainError, match="cannot be reached"):
        ask("compile")
    assert device.asked[-1][2]


def test_device_that_comes_back_as_another_ends_the_run_that_counted_on_the_old_one(ask, device, tmp_path):
    ask("compile")
    device.off = True
    devices.forget()
    known = Devices(load_pipeline(tmp_path / "p.yaml"), Store(tmp_path / "store"))
    known.measured_on()
    device.off, device.engine = False, "1.31"
    with pytest.raises(TryAgainError, match="is not what it last was"):
        known.require(["pi"])
    assert known.notes() == []


def test_what_a_device_lacks_is_said_at_its_line(ask, device):
    device.missing = [{"what": "onnxruntime", "command": "ssh pi pip install onnxruntime"}]
    with pytest.raises(UnavailableError, match=r"p.yaml:7:\d+: ssh://pi has no onnxruntime for /usr/bin/python3"):
        ask("compile")


@pytest.fixture
def make(monkeypatch, tmp_path):
    """Makes the build of an order in the stage; what the device was asked is in `wishes`."""
    wishes = []

    def compile_on(place, wish, onnx, folder, *, limit_s):
        wishes.append(wish)
        (folder / "engine.plan").write_bytes(b"engine")
        tensors = (TensorInfo("x", "float32", (-1, 3)),)
        return Made(Build("engine.plan", tensors, tensors, (Layer("stem", "Conv", "int8"),), {"v": "10"}), "arm", 7.0)

    def made(folder, **target):
        monkeypatch.setattr(compile_stage, "compile_on", compile_on)
        about = {"machine": {"gpu": None}, "board": "Jetson Orin Nano", "engines": {"tensorrt": "10.3.0"}}
        settings = TargetSettings(runtime="tensorrt", host="orin", **target)
        common = SimpleNamespace(base=tmp_path)
        context = SimpleNamespace(options=lambda kind: CompileStage(), common=common, work=tmp_path / "work")
        order = compile_stage.Order("orin", settings, "quantized", "int8")
        (tmp_path / folder).mkdir()
        source = compile_stage.Source(tmp_path / folder / "source.onnx", [], 20)
        source.path.write_bytes(b"onnx")
        place = SimpleNamespace(about=about)
        return compile_stage._made(context, order, source, tmp_path / folder, place), wishes

    return made


@pytest.mark.parametrize("given", [None, "orin.cache"])
def test_timing_cache_of_a_device_lies_here_by_its_version_and_gpu(make, tmp_path, given):
    _, (wish,) = make("build", timing_cache=given)
    usual = timing_cache.usual_place("10.3.0", "Jetson Orin Nano")
    assert wish.timings == (tmp_path / given if given else usual)
    assert wish.options["precision"] == "int8"


def test_build_that_came_back_is_not_made_again_when_the_device_drops_off_later(make, tmp_path):
    first, _ = make("one")
    second, wishes = make("two")
    assert second == first
    assert len(wishes) == 1
    assert (tmp_path / "two" / "engine.plan").read_bytes() == b"engine"
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"engine.plan", "source.onnx"}
