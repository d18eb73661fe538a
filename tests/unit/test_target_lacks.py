"""What a device lacks, and the command for it: by pip, by a venv where the system keeps its Python, by JetPack."""

from __future__ import annotations

import pytest

from edgekd.bench import probe
from edgekd.bench.targets.address import parse_address
from edgekd.bench.targets.lacks import missing
from edgekd.cli.target import _lines
from edgekd.errors import UnavailableError
from edgekd.runtimes.tensorrt import TensorRt

PI = parse_address("ssh://pi@raspberrypi.local:2222")
PLAIN = {"numpy": "2.4", "executable": "/usr/bin/python3", "jetson": None, "pip": True, "venv": True, "managed": False}


def facts(**more):
    return {**PLAIN, "engines": {}, **more}


def test_nothing_is_missing_where_all_is_there():
    assert missing(PI, facts(engines={"onnxruntime": "1.30", "openvino": "2026.4", "tensorrt": "10.3.0"})) == []


def test_pip_of_the_interpreter_brings_packages():
    rows = missing(PI, facts(numpy=None, engines={"onnxruntime": None}))
    assert [row["what"] for row in rows] == ["numpy", "onnxruntime"]
    start = "ssh -l pi -p 2222 raspberrypi.local "
    assert rows[0]["command"] == start + "'/usr/bin/python3 -m pip install numpy'"
    assert rows[1]["command"] == start + "'/usr/bin/python3 -m pip install onnxruntime'"


@pytest.mark.parametrize("kept", [{"managed": True}, {"pip": False}])
def test_python_of_the_system_gets_a_venv_beside_it_with_all_that_is_missing(kept):
    rows = missing(PI, facts(numpy=None, engines={"openvino": None}, **kept))
    assert len({row["command"] for row in rows}) == 1
    assert (
        "-m venv --system-site-packages edgekd-venv && edgekd-venv/bin/pip install numpy openvino"
        in (rows[0]["command"])
    )
    assert rows[0]["command"].endswith(
        "&& edgekd target add NAME ssh://pi@raspberrypi.local:2222 --python edgekd-venv/bin/python"
    )


def test_system_that_makes_no_venv_is_given_that_first():
    (row,) = missing(PI, facts(engines={"onnxruntime": None}, managed=True, venv=False))
    assert row["command"].startswith("ssh -t -l pi -p 2222 raspberrypi.local 'sudo apt-get install -y python3-venv && ")


def test_tensorrt_of_a_jetson_comes_with_jetpack():
    (row,) = missing(PI, facts(engines={"tensorrt": None}, jetson="R36 (release), REVISION: 4.3"))
    assert "apt-get install -y python3-libnvinfer" in row["command"]
    (row,) = missing(PI, facts(engines={"tensorrt": "8.6.2"}, jetson="R36 (release), REVISION: 2.0"))
    assert row["what"] == "tensorrt 10 or later (it has 8.6.2)"
    assert "JetPack 6.1" in row["command"]


def test_old_tensorrt_elsewhere_is_replaced_by_pip():
    (row,) = missing(PI, facts(engines={"tensorrt": "8.6.1"}))
    assert "'tensorrt>=10'" in row["command"].replace("'\"'\"'", "'")


def test_old_tensorrt_is_refused_by_its_adapter(monkeypatch):
    monkeypatch.setattr(TensorRt, "version", lambda self: "8.5.2.2")
    with pytest.raises(UnavailableError, match=r"8\.5\.2\.2 is too old") as caught:
        TensorRt().check("GPU", run=False)
    assert "JetPack 6.1" in caught.value.hint


def test_probe_tells_of_the_interpreter():
    found = probe.facts({"runtimes": []})
    assert found["pip"] in (True, False)
    assert found["managed"] in (True, False)
    assert found["jetson"] is None or "R" in found["jetson"]


def test_jetson_and_its_gpu_are_shown_where_there_is_one():
    machine = {"cpu": "ARMv8", "cores": 6, "gpu": "Orin", "gpu_driver": "540.4"}
    about = {"board": "Jetson Orin Nano", "os": "Ubuntu 22.04", "python": "3.10.12", "power_mode": "pmode:0000"}
    given = facts(**about, machine=machine, memory_free_bytes=None, disk_free_bytes=1e9, jetson="R36 (release)")
    lines = _lines(given, [])
    assert "gpu           Orin" in lines
    assert "jetson linux  R36 (release)" in lines
    assert not [line for line in _lines({**given, "jetson": None}, []) if line.startswith("jetson")]
