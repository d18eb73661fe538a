"""agent.pyz: one file, the same bytes from the same sources, which needs nothing of edgekd where it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekd.bench import pack
from edgekd.bench.targets.local import Local


def _oldest():
    """A Python 3.8 that runs; a shim of pyenv may stand on the path and not run."""
    there = [shutil.which("python3.8"), *(Path.home() / ".pyenv" / "versions").glob("3.8*/bin/python")]
    for python in filter(None, there):
        if subprocess.run([str(python), "-c", "pass"], capture_output=True, check=False).returncode == 0:
            return str(python)
    return None


OLDEST = _oldest()


@pytest.fixture
def agent(tmp_path):
    path = tmp_path / "agent.pyz"
    path.write_bytes(pack.agent_bytes())
    return path


def ask(agent, job, python, flags):
    pipe = subprocess.PIPE
    with subprocess.Popen([python, *flags, str(agent)], stdin=pipe, stdout=pipe) as process:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()  # and held open: its end would end the agent
        lines = process.stdout.read().splitlines()
        process.stdin.close()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_same_sources_give_the_same_bytes_in_another_process_and_time_zone():
    script = "from edgekd.bench.pack import agent_digest; print(agent_digest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "TZ": zone, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for zone, seed in (("UTC", "1"), ("Asia/Tokyo", "2"))
    }
    assert found == {pack.agent_digest()}


def test_another_source_is_another_digest(monkeypatch, tmp_path):
    before = pack.agent_digest()
    copy = tmp_path / "edgekd"
    shutil.copytree(pack._ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "bench" / "loop.py").open("a") as stream:
        stream.write("\n# another\n")
    monkeypatch.setattr(pack, "_ROOT", copy)
    pack.agent_bytes.cache_clear()
    try:
        assert pack.agent_digest() != before
    finally:
        pack.agent_bytes.cache_clear()


def test_it_holds_the_files_that_stand_here_and_no_others(agent):
    with zipfile.ZipFile(agent) as archive:
        names = set(archive.namelist())
        for path in pack.carried():
            name = path.relative_to(pack._ROOT.parent).as_posix()
            assert archive.read(name) == path.read_bytes()
    assert {"__main__.py", "edgekd/runtimes/openvino.py", "edgekd/bench/loop.py"} <= names
    assert not any("measure" in name or "settings" in name for name in names)


@pytest.mark.skipif(OLDEST is None, reason="there is no python3.8 here")
def test_probe_needs_python_3_8_and_nothing_else(agent):
    facts = ask(agent, {"mode": "probe", "runtimes": ["onnxruntime", "tensorrt"]}, OLDEST, ("-S", "-E"))
    assert facts["python"].startswith("3.8")
    assert facts["engines"]["tensorrt"] is None
    assert facts["disk_free_bytes"] > 0
    assert facts["machine"]["cores"] >= 1


@pytest.mark.skipif(OLDEST is None, reason="there is no python3.8 here")
def test_without_numpy_a_measurement_says_what_brings_it(agent):
    error = ask(agent, {"mode": "memory", "models": []}, OLDEST, ("-S", "-E"))["error"]
    assert error["kind"] == "unavailable"
    assert "numpy" in error["message"]
    assert error["hint"].endswith("-m pip install numpy")


def test_probe_names_versions_of_engines_that_are_here_and_none_of_others():
    facts = Local().probe(["onnxruntime", "openvino", "no_such_engine:Runtime"])
    import onnxruntime

    assert facts["engines"]["onnxruntime"] == onnxruntime.__version__
    assert facts["engines"]["openvino"]
    assert facts["engines"]["no_such_engine:Runtime"] is None
    assert facts["missing"] == []


def test_local_place_is_gone_when_it_is_left():
    with Local().open([]) as place:
        folder = Path(place.where("x")).parent
        assert (folder / pack.AGENT).is_file()
    assert not folder.exists()
