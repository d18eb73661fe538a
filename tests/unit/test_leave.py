"""A process that has torch ends at once, and as any: exit code, output, exit handlers, threads, open files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd import files

SCRIPT = """\
import atexit, sys, tempfile, threading, time
from edgekd.files import leave

class Object:
    def __del__(self):
        print("taken apart")

def late():
    time.sleep(0.1)
    print("thread")

sys.modules["torch"] = sys  # as large as need be
kept, folder, left_open = Object(), tempfile.TemporaryDirectory(), open(sys.argv[1], "w")
left_open.write(folder.name)
atexit.register(print, "handler")
threading.Thread(target=late).start()
"""


def ended(path: Path, *lines: str) -> tuple[int, list[str]]:
    """Exit code and output of the script with these lines at its end."""
    program = [sys.executable, "-c", SCRIPT + "\n".join(lines), str(path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def test_a_process_leaves_as_it_exits_but_for_its_objects(tmp_path: Path) -> None:
    assert ended(tmp_path / "exit", "sys.exit(5)") == (5, ["thread", "handler", "taken apart"])
    assert ended(tmp_path / "leave", "leave(5)") == (5, ["thread", "handler"])
    for name in ("exit", "leave"):  # what was written to an open file is there, the temporary folder is not
        folder = (tmp_path / name).read_text()
        assert folder
        assert not Path(folder).exists()


def test_a_small_process_exits_as_any_other(tmp_path: Path) -> None:
    found = ended(tmp_path / "file", "del sys.modules['torch']", "leave(0)")
    assert found == (0, ["thread", "handler", "taken apart"])


@pytest.mark.parametrize("watch", [sys.setprofile, sys.settrace])
def test_a_watched_process_exits_as_any_other(watch: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setattr(files, "leave_at_once", lambda code: pytest.fail("the measure is lost"))
    before = {sys.setprofile: sys.getprofile, sys.settrace: sys.gettrace}[watch]()
    watch(lambda *_: None)
    try:
        with pytest.raises(SystemExit) as end:
            files.leave(3)
    finally:
        watch(before)
    assert end.value.code == 3


def test_a_reader_that_went_away_is_told_as_python_tells_it() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    found = []
    for last in ("sys.exit(0)", "leave(0)"):
        read, write = os.pipe()
        os.close(read)
        text = f"import sys\nfrom edgekd.files import leave\nsys.modules['torch'] = sys\nprint('said')\n{last}"
        done = subprocess.run(
            [sys.executable, "-c", text], stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=buffered
        )
        os.close(write)
        found.append((done.returncode, done.stderr))
    assert found[0] == found[1]
    assert found[0][0] == 120
