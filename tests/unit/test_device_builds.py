"""Builds that a device makes and evaluates, over a real server on loopback: what comes back, and how it may fail."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import ssh_server
from fake_builder import NAMES

from edgekd.bench import process, remote
from edgekd.bench.remote import Wish, answers_on, compile_on
from edgekd.bench.targets.address import parse_address
from edgekd.bench.targets.local import Local
from edgekd.bench.targets.ssh import SshTarget
from edgekd.errors import BenchError, CompileError, StageError, TryAgainError, UnavailableError

FAKE = "fake_builder:FakeBuilder"
WISH = Wish("pi.f32", FAKE, "CPU", "f32")


def target(server, **more):
    given = {"config": server.config, "waits_s": (), "python": "device-python", **more}
    return SshTarget(parse_address(server.url), **given)


def onnx(tmp_path, **told):
    path = tmp_path / "student 'f32';$(touch pwned).onnx"
    path.write_text(json.dumps(told))
    return path


@pytest.fixture(scope="module")
def place(running):
    """A place on the device that tests share which do not break the connection."""
    with target(running).open([FAKE]) as opened:
        yield opened
        assert {path.name for path in Path(opened.connection.folder).iterdir()} == {"agent.pyz"}
    assert running.left_behind() == []


def built(tmp_path, place, *, wish=WISH, limit_s=120, to="build", **told):
    folder = tmp_path / to
    folder.mkdir()
    return compile_on(place, wish, onnx(tmp_path, **told), folder, limit_s=limit_s), folder


def test_build_made_on_the_device_comes_back_whole(place, tmp_path):
    made, folder = built(tmp_path, place, max_batch=4)
    assert sorted(p.name for p in folder.iterdir()) == sorted(NAMES)
    assert json.loads((folder / made.build.file).read_text()) == {"max_batch": 4}
    assert [tensor.shape for tensor in (*made.build.inputs, *made.build.outputs)] == [(-1, 3), (-1, 3)]
    assert [vars(layer) for layer in made.build.layers] == [{"name": "stem", "kind": "Conv", "precision": "f32"}]
    assert made.build.facts == {"fake": "1.0"}
    assert made.arch
    assert not list(tmp_path.rglob("pwned"))


def test_same_agent_compiles_here(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{Path(__file__).parent}")
    (tmp_path / "build").mkdir()
    with Local().open([FAKE]) as place:
        made = compile_on(place, WISH, onnx(tmp_path), tmp_path / "build", limit_s=120)
        answers = answers_on(
            place, MODEL, tmp_path / "build" / made.build.file, [{"x": np.ones((3, 3))}], batch=2, limit_s=120
        )
    assert np.array_equal(answers["file"], np.full((3, 3), 2))


def test_timing_cache_stays_here_and_goes_along_with_the_next_build(place, tmp_path):
    file = tmp_path / "timings" / "orin.cache"
    wish = Wish("pi.f32", FAKE, "CPU", "f32", {"workspace_bytes": 1}, file)
    for count in (1, 2):
        built(tmp_path, place, wish=wish, to=f"build-{count}")
        assert file.read_text() == "timed " * count


MODEL = {"name": "pi.f32", "runtime": FAKE, "device": "CPU"}


def test_build_answers_samples_on_the_device_part_by_part(place, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"max_batch": 4}))
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    parts = ({"x": part} for part in (x[:9], x[9:18], x[18:]))
    found = answers_on(place, MODEL, tmp_path / "model.json", parts, batch=4, limit_s=120)
    assert found.keys() == {"file"}
    assert np.array_equal(found["file"], x * 2)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("killed", r"out of memory .exit code 137.: the system killed the process"),
        ("bad_alloc", r"out of memory .*what\(\):  std::bad_alloc"),
        ("said", "out of memory: .*could not be allocated"),
    ],
)
def test_build_that_runs_out_of_memory_there_is_named_as_that(place, tmp_path, how, words):
    with pytest.raises(CompileError, match=rf"^pi.f32: {place.target.address}: {words}") as caught:
        built(tmp_path, place, no_memory=how)
    assert "compile_on: host" in caught.value.hint
    assert caught.value.exit_code == 4


def test_lack_of_memory_while_it_answers_says_what_to_do(place, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"no_memory_when_run": True}))
    with pytest.raises(BenchError, match="CUDA out of memory") as caught:
        answers_on(place, MODEL, tmp_path / "model.json", [{"x": np.ones((3, 3))}], batch=4, limit_s=120)
    assert "evaluate.batch" in caught.value.hint


def test_tensorrt_is_told_what_it_can_do_with_less_memory():
    wish = Wish("orin.int8", "tensorrt", "GPU", "int8")
    assert "workspace_bytes" in remote._lighter(wish)
    assert "compile_on" not in remote._lighter(wish)


def test_refused_graph_is_the_engines_own_line(place, tmp_path):
    with pytest.raises(CompileError, match=r"^pi.f32: fake refused model.onnx: no such operation$") as caught:
        built(tmp_path, place, refuse=True)
    assert caught.value.hint == "use opset 20"


def test_device_of_the_engine_that_is_missing_there_is_unavailable(place, tmp_path):
    with pytest.raises(UnavailableError, match="fake has no device MISSING"):
        built(tmp_path, place, wish=Wish("pi.f32", FAKE, "MISSING", "f32"))


def test_build_that_takes_too_long_is_ended_on_the_device(place, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(CompileError, match="ended after 3 s") as caught:
        built(tmp_path, place, limit_s=3, sleep_unless=str(mark))
    assert "time_limit_s" in caught.value.hint
    assert ssh_server.is_gone(int(mark.read_text()))


@pytest.fixture
def own(tmp_path):
    """A server whose connections may be broken: nobody else has one."""
    if ssh_server.SSHD is None:
        pytest.skip(ssh_server.MISSING)
    server = ssh_server.Server(tmp_path / "device")
    yield server
    left = server.left_behind()
    server.stop()
    assert left == []


@contextlib.contextmanager
def cut_when(server, mark):
    """Break the connection once the device is in the middle of a build."""

    def watch():
        end = time.monotonic() + 60
        while not (mark.exists() and mark.read_text()) and time.monotonic() < end:
            time.sleep(0.02)
        server.cut()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_connection_that_is_cut_in_the_middle_of_a_build_is_opened_again(own, tmp_path):
    mark = tmp_path / "mark"
    with cut_when(own, mark), target(own, waits_s=(0.1,)).open([FAKE]) as place:
        made, folder = built(tmp_path, place, sleep_unless=str(mark))
    assert (folder / made.build.file).is_file()
    assert ssh_server.is_gone(int(mark.read_text()))


def test_connection_that_stays_away_is_for_later_and_leaves_nothing(own, tmp_path):
    mark = tmp_path / "mark"
    with (
        cut_when(own, mark),
        pytest.raises(TryAgainError, match=r"connection to .* was lost") as caught,
        target(own).open([FAKE]) as place,
    ):
        built(tmp_path, place, sleep_unless=str(mark))
    assert caught.value.exit_code == 75
    assert ssh_server.is_gone(int(mark.read_text()))
    assert list((tmp_path / "build").iterdir()) == []


@pytest.mark.skipif(ssh_server.SSHD is None, reason=ssh_server.MISSING)
def test_disk_that_a_build_fills_is_a_failure_in_words(tmp_path):
    with ssh_server.small_disk(tmp_path / "disk", "2m") as disk:
        server = ssh_server.Server(tmp_path / "device", tmp=disk)
        try:
            with pytest.raises(StageError, match="no space left on the disk of the device"):  # noqa: SIM117
                with target(server).open([FAKE]) as place:
                    built(tmp_path, place, large_bytes=3_000_000)
            assert server.left_behind() == []
        finally:
            server.stop()


TOLD = {"file": "m.xml", "inputs": [], "outputs": [], "layers": [], "facts": {}, "arch": "x", "seconds": 1.0}


class Liar:
    """A device that answers what it is told, and sends these bytes as the archive."""

    def __init__(self, result, archive):
        self.result, self.archive = result, archive

    def push(self, path, name):
        return name

    def where(self, name):
        return name

    def forget(self, *names):
        pass

    push_build = push

    def run(self, job, *, limit_s, progress, leaves):
        for path in leaves.values():
            path.write_bytes(self.archive)
        return self.result


def packed(files, how=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


GOOD = packed({"build/m.xml": b"<net/>"})


@pytest.mark.parametrize(
    ("result", "archive", "words"),
    [
        ({}, GOOD, "KeyError"),
        ([], GOOD, "TypeError"),
        ({**TOLD, "inputs": 3}, GOOD, "TypeError"),
        ({**TOLD, "inputs": [{"name": "x", "dtype": "float32", "shape": ["n"]}]}, GOOD, "ValueError"),
        ({**TOLD, "layers": [{"no": 1}]}, GOOD, "TypeError"),
        ({**TOLD, "file": "other.xml"}, GOOD, "sent no 'other.xml'"),
        (TOLD, b"no archive", "BadZipFile"),
        (TOLD, GOOD.replace(b"<net/>", b"<not/>"), "BadZipFile: Bad CRC"),
        (TOLD, packed({"build/m.xml": b"<net/>"}, zipfile.ZIP_DEFLATED), "compressed archive"),
    ],
)
def test_what_a_device_sends_is_checked_and_named_in_one_line(tmp_path, result, archive, words):
    with pytest.raises(CompileError, match=f"^pi.f32: .*{words}") as caught:
        built(tmp_path, Liar(result, archive))
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("said", [b"[]", b"3", b"null"])
def test_a_result_that_is_no_object_is_one_line(said):
    with pytest.raises(BenchError, match="no result that edgekd knows"):
        process._result(0, said, b"")


def test_a_build_larger_than_stated_is_not_unpacked(tmp_path, monkeypatch):
    assert built(tmp_path, Liar(TOLD, GOOD))[0].build.file == "m.xml"
    monkeypatch.setattr(remote, "MOST_BYTES", 5)
    with pytest.raises(CompileError, match=r"pi.f32: the device sent a build of 6 bytes, more than 5"):
        built(tmp_path, Liar(TOLD, GOOD), to="again")
    assert not list((tmp_path / "again").iterdir())


@pytest.mark.parametrize("answers", [b"no archive", packed({"other.npy": b"x"}), packed({"0.npy": b"\x93NUMPY"})])
def test_answers_of_a_device_that_are_none_are_one_line(tmp_path, answers):
    with pytest.raises(BenchError, match=r"^pi.f32: its answers: what the device sent"):
        answers_on(Liar({"outputs": ["y"]}, answers), MODEL, tmp_path / "m", [{"x": np.ones(3)}], batch=1, limit_s=1)


@pytest.mark.parametrize(
    "name", ["build/..", "build/a\\b", "build/.ssh.json", "build/run.py", "build/a\n.bin", "build/x"]
)
def test_names_that_a_device_gives_stay_in_the_builds_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "build.zip", "w") as archive:
        archive.writestr("elsewhere/x", b"is not unpacked")
        archive.writestr(name, b"leads out")
    (tmp_path / "to").mkdir()
    with pytest.raises(CompileError, match="the device names a file"):
        remote._unpack(tmp_path / "build.zip", tmp_path / "to", None)
    assert list((tmp_path / "to").iterdir()) == []


def test_python_with_a_nasty_name_is_one_word_of_a_command(running, tmp_path):
    odd = tmp_path / "a b;$(touch pwned) 'x'"
    odd.write_text((running.folder / "bin" / "device-python").read_text())
    odd.chmod(0o755)
    with target(running, python=str(odd)).open([FAKE]) as place:
        assert place.python.path == str(odd)
        place.run({"mode": "probe", "runtimes": [FAKE]}, limit_s=60, progress=lambda line: None)
    assert not list(tmp_path.rglob("pwned"))
