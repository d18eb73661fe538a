"""The remote store: what one machine built another takes, verified; whatever is wrong there never fails a run."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import ConfigError, UnavailableError
from edgekd.store import Artifact, Store, StorePlace
from edgekd.store.artifact import meta_text
from edgekd.store.remote import RemoteStore, without_secrets

KEY = "ab" + "0" * 62


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


class Machine:
    """A store of its own before a remote one, and what it warned of."""

    def __init__(self, folder: Path, url: str, mode: Any = "rw") -> None:
        self.said: list[str] = []
        self.store = StorePlace(folder, mode, url).open(
            folder / "scratch" if mode == "ro" else folder, self.said.append
        )

    def build(self, key: str = KEY, text: str = "content") -> Artifact:
        with self.store.publish(key) as draft:
            (draft.folder / "sub").mkdir()
            (draft.folder / "sub" / "file.txt").write_text(text)
            (draft.folder / "same.txt").write_text(text)
            draft.facts["size"] = len(text)
        made = self.store.get(key)
        assert made is not None
        if self.store.pushes is not None:
            self.store.pushes(made)
        return made


def blobs(url: str) -> list[tuple[Any, str]]:
    import fsspec

    fs, root = fsspec.url_to_fs(url)
    return [(fs, path) for path in fs.find(f"{root}/v1/blobs")]


def test_what_one_machine_built_another_takes(url: str, tmp_path: Path) -> None:
    made = Machine(tmp_path / "a", url).build()
    assert len(blobs(url)) == 1  # two files of the same content are one
    cold = Machine(tmp_path / "b", url)
    peeked = cold.store.peek(KEY)
    assert peeked is not None
    assert (peeked.digest, peeked.found) == (made.digest, "remote")
    assert not (tmp_path / "b" / "objects").exists()
    found = cold.store.find(KEY)
    assert found is not None
    assert (found.digest, found.facts, found.found) == (made.digest, {"size": 7}, "remote")
    assert found.path("sub/file.txt").read_text() == "content"
    again = Store(tmp_path / "b").get(KEY)
    assert again is not None and again.found == "local"
    assert cold.store.find("cd" + "0" * 62) is None
    assert cold.said == []


def test_what_must_be_of_this_machine_is_not_looked_for(url: str, tmp_path: Path) -> None:
    Machine(tmp_path / "a", url).build()
    cold = Machine(tmp_path / "b", url)
    assert cold.store.find(KEY, far=False) is None
    assert cold.store.peek(KEY, far=False) is None


def test_a_changed_file_is_refused_and_the_next_builder_mends_it(url: str, tmp_path: Path) -> None:
    Machine(tmp_path / "a", url).build()
    for fs, path in blobs(url):
        fs.pipe_file(path, b"contenu")  # as long as before
    cold = Machine(tmp_path / "b", url)
    assert cold.store.find(KEY) is None
    assert len(cold.said) == 1
    assert "is refused: same.txt was changed; it is made here" in cold.said[0]
    assert not list((tmp_path / "b").glob("staging/*"))
    cold.build()
    assert Machine(tmp_path / "c", url).store.find(KEY) is not None


def test_a_missing_file_is_refused(url: str, tmp_path: Path) -> None:
    Machine(tmp_path / "a", url).build()
    for fs, path in blobs(url):
        fs.rm_file(path)
    cold = Machine(tmp_path / "b", url)
    assert cold.store.find(KEY) is None
    assert "same.txt is missing" in cold.said[0]


@pytest.mark.parametrize("name", ["../../stolen.txt", "/tmp/edgekd-stolen.txt"])
def test_a_marker_that_names_a_path_outside_is_refused(name: str, url: str, tmp_path: Path) -> None:
    made = Machine(tmp_path / "a", url).build()
    text = meta_text(KEY, {name: next(iter(made.files.values()))}, {}, {})
    import fsspec

    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/v1/artifacts/ab/{KEY}.json", text.encode())
    cold = Machine(tmp_path / "b", url)
    assert cold.store.find(KEY) is None
    assert "meta.json names the file" in cold.said[0]
    assert not list(tmp_path.rglob("stolen.txt"))


def test_a_poisoned_marker_costs_one_artefact_and_not_the_remote(url: str, tmp_path: Path) -> None:
    first = Machine(tmp_path / "a", url)
    made, other = first.build(), first.build("cd" + "0" * 62)
    import fsspec

    fs, root = fsspec.url_to_fs(url)
    text = json.dumps({**json.loads(made.path("meta.json").read_text()), "record": None})
    fs.pipe_file(f"{root}/v1/artifacts/ab/{KEY}.json", text.encode())
    cold = Machine(tmp_path / "b", url)
    assert cold.store.find(KEY) is None
    assert "is refused: meta.json was changed; it is made here" in cold.said[0]
    assert cold.store.find(other.key) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "other"}', b"\xff\xfe"])
def test_a_marker_that_makes_no_sense_is_refused(content: bytes, url: str, tmp_path: Path) -> None:
    import fsspec

    fs, root = fsspec.url_to_fs(url, auto_mkdir=True)
    fs.pipe_file(f"{root}/v1/artifacts/ab/{KEY}.json", content)
    cold = Machine(tmp_path / "b", url)
    assert cold.store.find(KEY) is None
    assert "meta.json was changed" in cold.said[0]


def test_the_marker_comes_last_so_that_half_a_push_is_no_artefact(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(RemoteStore, "_place", dies)
    broken = Machine(tmp_path / "a", url)
    broken.build()
    assert broken.said == [f"remote store {url}: OSError: connection reset; this run goes on without it"]
    monkeypatch.undo()
    assert Machine(tmp_path / "b", url).store.find(KEY) is None
    Machine(tmp_path / "c", url).build()
    assert Machine(tmp_path / "d", url).store.find(KEY) is not None


def test_pushers_at_the_same_time_leave_one_whole_artefact(url: str, tmp_path: Path) -> None:
    machines = [Machine(tmp_path / str(i), url) for i in range(4)]
    threads = [threading.Thread(target=machine.build, args=(KEY, "content" * 10_000)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [machine.said for machine in machines] == [[]] * 4
    assert Machine(tmp_path / "cold", url).store.find(KEY) is not None
    assert not [path for _, path in blobs(url) if path.endswith(".part")]


def test_a_broken_remote_is_told_once_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object) -> None:
        asked.append(1)
        raise PermissionError("no")

    machine = Machine(tmp_path / "a", f"file://{tmp_path}/remote")
    monkeypatch.setattr(RemoteStore, "_marker", refuse)
    machine.build()
    for _ in range(3):
        assert machine.store.find("cd" + "0" * 62) is None
    assert asked == [1]
    assert len(machine.said) == 1
    assert "PermissionError: no; this run goes on without it" in machine.said[0]


def test_a_remote_that_does_not_answer_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    free = threading.Event()
    remote = RemoteStore(f"file://{tmp_path}/remote", said.append, stall_s=0.1)
    monkeypatch.setattr(RemoteStore, "_marker", lambda *_: free.wait(30))
    started = time.monotonic()
    assert remote.peek(KEY) is None
    free.set()
    assert time.monotonic() - started < 20
    assert said == [f"remote store file://{tmp_path}/remote: no answer for 0.1 s; this run goes on without it"]


def test_what_was_made_before_the_remote_was_there_is_brought_once(url: str, tmp_path: Path) -> None:
    import fsspec

    made = Machine(tmp_path / "a", url).build()
    for word, brought in ((url, False), (f"{url}-new", True), (f"{url}-new", False)):
        there = RemoteStore(word)
        marker = there._place(KEY)
        before = fsspec.url_to_fs(word)[0].info(marker) if not brought else None
        assert there.push(made, made=False) is brought
        assert before is None or fsspec.url_to_fs(word)[0].info(marker) == before
    assert Machine(tmp_path / "b", f"{url}-new").store.find(KEY) is not None


def test_a_run_that_only_reads_takes_from_the_remote_and_brings_nothing(url: str, tmp_path: Path) -> None:
    Machine(tmp_path / "a", url).build()
    fork = Machine(tmp_path / "b", url, "ro")
    assert fork.store.find(KEY) is not None
    fork.build("cd" + "0" * 62)
    assert Machine(tmp_path / "c", url).store.find("cd" + "0" * 62) is None


def test_an_artefact_that_is_damaged_here_comes_from_the_remote(url: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "a", url)
    machine.build().path("same.txt").write_text("contenu")
    found = machine.store.find(KEY)
    assert found is not None
    assert (found.found, found.path("same.txt").read_text()) == ("remote", "content")


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [("nosuch://x", ConfigError, "nosuch"), ("gs://bucket/x", UnavailableError, "gcsfs")],
)
def test_a_url_that_cannot_work_is_refused_before_anything_runs(
    url: str, kind: Any, words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        StorePlace(tmp_path, "rw", url).open(tmp_path)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host:8080/store?token=secret", "https://host:8080/store"),
        ("s3://bucket/folder", "s3://bucket/folder"),
        ("s3://bucket/dir@v1", "s3://bucket/dir@v1"),
        ("/mnt/user@host/x", "/mnt/user@host/x"),
        ("file:///mnt/store", "file:///mnt/store"),
        ("memory://x", "memory://x"),
        ("simplecache::s3://KEY:secret@b/x", "simplecache::s3://b/x"),
        ("filecache::https://u:secret@h/x?sig=secret", "filecache::https://h/x"),
        ("zip://inside::https://u:secret@h/x#secret", "zip://inside::https://h/x"),
        ("s3://KEY:sec/secret@bucket/x", "s3://bucket/x"),
        ("https://u:secret?secret@h/x", "https:"),
        ("https://u:secret::secret@h/x", "https:"),
        ("https://h/x?sig=secret::Secret", "https://h/x"),
        ("filecache::/mnt/store", "filecache::/mnt/store"),
        ("github:user:secret@repo", "github:"),
    ],
)
def test_messages_do_not_show_what_a_url_keeps_secret(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_a_message_of_another_package_does_not_show_it_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("401, url='https://u:secret@h/x?sig=secret'")

    machine = Machine(tmp_path / "a", f"file://{tmp_path}/remote")
    monkeypatch.setattr(RemoteStore, "_marker", refuse)
    assert machine.store.find(KEY) is None
    assert "401, url='https://h/x'; this run goes on" in machine.said[0]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3-compatible server on this machine, with an empty bucket."""
    server = pytest.importorskip("moto.server", reason="needs moto, flask and s3fs: pip install -e '.[test]'")
    s3fs = pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    names = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"builds-{uuid.uuid4().hex[:8]}"  # the server keeps its buckets for as long as this process lives
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/edgekd"
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_an_s3_server_is_a_remote_store(bucket: str, tmp_path: Path) -> None:
    first = Machine(tmp_path / "a", bucket)
    made = first.build(text="content" * 100_000)
    cold = Machine(tmp_path / "b", bucket)
    found = cold.store.find(KEY)
    assert found is not None
    assert (found.digest, found.found) == (made.digest, "remote")
    for fs, path in blobs(bucket):
        fs.pipe_file(path, b"x" * 700_000)
    damaged = Machine(tmp_path / "c", bucket)
    assert damaged.store.find(KEY) is None
    assert "was changed" in damaged.said[0]
    assert (first.said, cold.said) == ([], [])


def test_a_bucket_that_is_not_there_is_a_warning(bucket: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "a", "s3://nowhere/edgekd")
    machine.build()
    assert len(machine.said) == 1
    assert "this run goes on without it" in machine.said[0]


def test_the_marker_is_what_the_store_itself_writes(tmp_path: Path) -> None:
    made = Machine(tmp_path / "a", f"file://{tmp_path}/remote").build()
    marker = json.loads((tmp_path / "remote" / "v1" / "artifacts" / "ab" / f"{KEY}.json").read_text())
    assert marker == json.loads(made.path("meta.json").read_text())
