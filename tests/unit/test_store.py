"""The store: whole artefacts or none, verified when read, one builder at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from edgekd.cli.main import run
from edgekd.errors import TryAgainError
from edgekd.files import lock, sha256_json, write_atomic
from edgekd.store import Store, StorePlace
from edgekd.store.artifact import meta_text, parse_meta
from edgekd.store.collect import collect, disk_bytes

KEY = "ab" + "0" * 62


def put(store: Store, key: str = KEY, text: str = "content", **facts: object) -> None:
    with store.publish(key) as draft:
        (draft.folder / "sub").mkdir()
        (draft.folder / "sub" / "file.txt").write_text(text)
        draft.facts.update(facts)
        draft.record["seconds"] = time.time()


def test_what_was_put_is_got_with_its_facts_and_digests(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get(KEY) is None
    put(store, size=3)
    artifact = store.get(KEY)
    assert artifact is not None
    assert artifact.path("sub/file.txt").read_text() == "content"
    assert artifact.facts == {"size": 3}
    assert list(artifact.files) == ["sub/file.txt"]


def test_the_digest_is_of_content_and_facts_and_not_of_the_record(tmp_path: Path) -> None:
    digests = []
    for name, text, fact in (("a", "x", 1), ("b", "x", 1), ("c", "y", 1), ("d", "x", 2)):
        store = Store(tmp_path / name)
        put(store, text=text, fact=fact)
        artifact = store.get(KEY)
        assert artifact is not None
        digests.append(artifact.digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_artefact_that_failed_half_way_is_never_served(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> None:
        with store.publish(KEY) as draft:
            (draft.folder / "half").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.get(KEY) is None
    assert list((tmp_path / "staging").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "meta", "meta is no JSON", "facts"])
def test_damage_is_found_and_the_artefact_is_taken_out_of_service(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    put(store, fact=1)
    folder = tmp_path / "objects" / "ab" / KEY
    file, meta = folder / "sub" / "file.txt", folder / "meta.json"
    if damage == "flip":
        file.write_text("contenu")
    elif damage == "truncate":
        file.write_text("")
    elif damage == "remove":
        file.unlink()
    elif damage == "meta":
        meta.write_text(meta.read_text().replace('"digest"', '"dijest"'))
    elif damage == "meta is no JSON":
        meta.write_text("{")
    else:
        meta.write_text(json.dumps({**json.loads(meta.read_text()), "facts": {"fact": 2}}))
    assert store.get(KEY) is None
    assert not folder.exists()


def test_work_in_progress_stays_until_the_artefact_is_published(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.work(KEY) / "checkpoint").write_text("epoch 3")
    with pytest.raises(KeyboardInterrupt), store.publish(KEY):
        raise KeyboardInterrupt
    assert (store.work(KEY) / "checkpoint").read_text() == "epoch 3"
    put(store)
    assert not store.work(KEY, create=False).exists()


def test_collecting_keeps_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [f"{i:02d}" + "0" * 62 for i in range(4)]
    for key in keys:
        put(store, key)
        time.sleep(0.02)
    count, size, in_use = collect(store, keep=2)
    assert (count, size > 0, in_use) == (2, True, 0)
    assert [store.get(key) is not None for key in keys] == [False, False, True, True]


def test_collecting_deletes_caches_that_were_not_used_lately(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [f"{i}" * 64 for i in range(3)]
    for key in keys:
        store.cache("teacher", key).mkdir(parents=True)
        (store.cache("teacher", key) / "values.bin").write_bytes(b"x" * 5000)
        time.sleep(0.02)
    assert collect(store, keep=1)[0] == 2
    assert [path.name for path in tmp_path.glob("caches/*/*")] == keys[2:]


def test_collecting_leaves_what_a_live_run_uses_and_the_newest_whole_run_of_each_pipeline(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [f"{i:02d}" + "0" * 62 for i in range(5)]
    for key in keys:
        put(store, key)
    for pipeline, key in (("a", keys[0]), ("a", keys[1]), ("b", keys[2])):
        with store.in_use_by(pipeline) as usage:
            assert store.find(key) is not None
            usage.finish()
    with Store(tmp_path).in_use_by("a") as live:  # it has not ended: the run before still counts
        live.add(keys[3])
        collect(store, keep=0)
        assert [store.get(key) is not None for key in keys] == [False, True, True, True, False]
    collect(store, keep=0)
    assert [store.get(key) is not None for key in keys] == [False, True, True, True, False]
    with store.in_use_by("a") as usage:
        store.find(keys[1])
        usage.finish()
    collect(store, keep=0)
    assert [store.get(key) is not None for key in keys] == [False, True, True, False, False]


def test_collecting_says_what_stays_only_because_it_is_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    keys = [f"{i:02d}" + "0" * 62 for i in range(3)]
    for key in keys:
        put(store, key)
    with store.in_use_by("a") as usage:
        for key in keys:
            store.find(key)
        usage.finish()
    assert ended("gc", "--keep", "1", "--store", str(tmp_path)) == 0
    said = "2 more are protected: a live run, or a pipeline's newest, uses them"
    assert capsys.readouterr().out == f"removed 0 artefacts and caches, 0 bytes; {said}\n"
    assert ended("gc", "--keep", "3", "--store", str(tmp_path)) == 0
    assert capsys.readouterr().out == "removed 0 artefacts and caches, 0 bytes\n"


def ended(*words: str) -> object:
    """The exit code of `edgekd store`."""
    with pytest.raises(SystemExit) as end:
        run(["store", *words])
    return end.value.code


@pytest.mark.parametrize("command", ["ls", "gc", "verify"])
def test_a_store_that_is_named_has_to_be_there(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEKD_STORE", raising=False)
    assert ended(command) == 0  # the default one, which no run has made yet
    capsys.readouterr()
    (tmp_path / "file").touch()
    for name, wrong in (("nowhere", "there is no such folder"), ("file", "is a file, not a folder")):
        told = [f"error: --store {name}: {wrong}", "help: give the folder of a store (also EDGEKD_STORE)"]
        assert ended(command, "--store", name) == 2
        assert capsys.readouterr().err.splitlines() == told
        with monkeypatch.context() as patch:
            patch.setenv("EDGEKD_STORE", name)
            assert ended(command) == 2
        assert capsys.readouterr().err.splitlines() == told
    assert not (tmp_path / "nowhere").exists()


def test_collecting_to_a_size_deletes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [f"{i:02d}" + "0" * 62 for i in range(3)]
    for key in keys:
        put(store, key, text="x" * 50_000)
        time.sleep(0.02)
    assert store.get(keys[0]) is not None  # used just now: the last to go
    one = disk_bytes(tmp_path / "objects" / "00")
    collect(store, keep=50, max_bytes=round(2.5 * one))
    assert [store.get(key) is not None for key in keys] == [True, False, True]
    assert collect(store, keep=50, max_bytes=0)[0] == 2


def test_collecting_deletes_what_killed_runs_left_and_nothing_that_is_held(tmp_path: Path) -> None:
    store = Store(tmp_path)
    other = "cd" + "0" * 62
    for key in (KEY, other):
        (store.work(key) / "checkpoint").write_text("epoch 3")
        os.utime(store.work(key), (0, 0))
    with Store(tmp_path).locked(other, timeout_s=0):
        collect(store, keep=0)
    assert not store.work(KEY, create=False).exists()
    assert (store.work(other) / "checkpoint").is_file()


def test_collecting_leaves_what_is_not_of_the_store(tmp_path: Path) -> None:
    """`--store .` is a store in the user's own folder."""
    theirs = [
        ".env",
        ".gitignore",
        ".memo.json.swp",
        "last/.notes",
        "work/plan.txt",
        "staging/a",
        "locks/a",
        "caches/a/b",
        "runs/p.more.json",
    ]
    ours = [".memo.json.abc_1234", ".devices.json.abcdefgh", "last/.p.json.a1234567", "runs/.p.0a.json.a1234567"]
    for name in (*theirs, *ours):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (0, 0))
    with Store(tmp_path).in_use_by("p") as usage:
        usage.finish()
    collect(Store(tmp_path), keep=0)
    assert [name for name in (*theirs, *ours) if (tmp_path / name).exists()] == theirs


POISON: dict[str, dict[str, object]] = {
    "no record": {"record": None},
    "seconds that are none": {"record": {"seconds": "1"}},
    "seconds without end": {"record": {"seconds": 1e999}},
    "a stage that is no name": {"record": {"stage": ["export"]}},
    "a build that is none": {"record": {"ov.int8": "fast"}},
    "seconds of a build": {"record": {"ov.int8": {"seconds": None}}},
    "files that are a list": {"files": []},
    "facts that are a text": {"facts": "x"},
    "a digest that is a number": {"files": {"sub/file.txt": 1}},
}


@pytest.mark.parametrize("poison", POISON)
def test_a_poisoned_meta_file_is_one_damaged_artefact(poison: str, tmp_path: Path) -> None:
    """Its digest fits: who can write it can make that, too."""
    store = Store(tmp_path)
    put(store, size=3)
    path = store.object(KEY) / "meta.json"
    meta = {**json.loads(path.read_text()), **POISON[poison]}
    path.write_text(json.dumps({**meta, "digest": sha256_json({"files": meta["files"], "facts": meta["facts"]})}))
    assert store.all() == []
    assert store.find(KEY) is None
    assert list(store.damaged) == [KEY]


def test_a_meta_file_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"meta\.json was changed"):
        parse_meta(KEY, tmp_path, b"[" * 100_000)


def test_the_record_of_a_compiled_artefact_is_taken(tmp_path: Path) -> None:
    record = {"seconds": 1, "created": 1.5, "stage": "compile", "pipeline": "p", "ov.int8": {"seconds": 0.5}}
    assert parse_meta(KEY, tmp_path, meta_text(KEY, {}, {}, record).encode()).record == record


def test_a_damaged_artefact_is_told_once_and_why(tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    store.tell = said.append
    put(store)
    (tmp_path / "objects" / "ab" / KEY / "sub" / "file.txt").write_text("contenu")
    assert store.find(KEY) is None
    assert said == ["the store held a damaged artefact, ab0000000000: sub/file.txt was changed"]
    assert store.damaged == {KEY: "sub/file.txt was changed"}


def test_peeking_says_what_is_damaged_and_changes_nothing(tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    store.tell = said.append
    put(store)
    file = tmp_path / "objects" / "ab" / KEY / "sub" / "file.txt"
    for text, whole in ((file.read_text(), True), ("contenu", False)):
        file.write_text(text)
        before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
        assert (store.peek(KEY) is not None) is whole
        assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    assert said == ["the store holds a damaged artefact, ab0000000000: sub/file.txt was changed"]
    assert store.damaged == {KEY: "sub/file.txt was changed"}


def test_checking_names_everything_that_is_not_as_it_was_written_and_removes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [f"{i:02d}" + "0" * 62 for i in range(4)]
    for key in keys:
        put(store, key)
    (store.object(keys[0]) / "sub" / "file.txt").unlink()
    (store.object(keys[1]) / "more.txt").write_text("")
    (store.object(keys[2]) / "meta.json").write_text("{")
    assert store.check() == (
        4,
        [
            "000000000000: sub/file.txt is missing",
            "010000000000: more.txt is no file of it",
            "020000000000: meta.json was changed",
        ],
    )
    assert all(store.object(key).is_dir() for key in keys)


@pytest.mark.parametrize("name", ["../file", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\\b", "c:d"])
def test_an_artefact_cannot_name_files_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    content = meta_text(KEY, {name: "0" * 64}, {}, {})
    with pytest.raises(ValueError, match=r"meta\.json names the file"):
        parse_meta(KEY, tmp_path, content.encode())


def test_a_store_that_is_only_read_stays_as_it_is_and_results_go_to_another(tmp_path: Path) -> None:
    shared = Store(tmp_path / "shared")
    put(shared, size=3)
    before = {path: path.stat().st_mtime_ns for path in sorted(shared.root.rglob("*"))}
    store = StorePlace(shared.root, "ro").open(tmp_path / "own")
    artifact = store.find(KEY)
    assert artifact is not None
    assert (artifact.facts, artifact.found) == ({"size": 3}, "local")
    assert artifact.folder.is_relative_to(tmp_path / "own")
    put(store, "cd" + "0" * 62)
    collect(store, keep=0)
    assert {path: path.stat().st_mtime_ns for path in sorted(shared.root.rglob("*"))} == before
    assert store.pushes is None


def test_a_damaged_artefact_of_a_store_that_is_only_read_is_not_used_and_not_removed(tmp_path: Path) -> None:
    shared, said = Store(tmp_path / "shared"), list[str]()
    put(shared)
    file = shared.object(KEY) / "sub" / "file.txt"
    file.write_text("contenu")
    store = StorePlace(shared.root, "ro").open(tmp_path / "own", said.append)
    assert store.find(KEY) is None
    assert file.is_file()
    assert "read-only store holds a damaged artefact" in said[0]


def build_once(root: Path, built: Path) -> None:
    """What a run does with a stage: look, hold, look again, build."""
    store = Store(root)
    with store.locked(KEY, timeout_s=60):
        if store.get(KEY) is None:
            with built.open("a") as stream:
                stream.write("built\n")
            time.sleep(0.2)
            put(store)


def test_of_several_builders_one_builds_and_the_others_take_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=build_once, args=(tmp_path, tmp_path / "built")) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert (tmp_path / "built").read_text() == "built\n"


def test_a_lock_says_who_holds_it_and_survives_that_its_file_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path, timeout_s=1, holder_hint=""):
        with (
            pytest.raises(TryAgainError, match=rf"\(process {os.getpid()} on .+\)"),
            lock(path, timeout_s=0, holder_hint=""),
        ):
            pass
        path.unlink()
        with lock(path, timeout_s=0, holder_hint=""):
            assert path.is_file()


def hold(path: Path, started: multiprocessing.synchronize.Event) -> None:
    with lock(path, timeout_s=1, holder_hint=""):
        started.set()
        time.sleep(60)


def test_a_held_lock_is_waited_for_and_a_dead_holder_frees_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lock", started))
    process.start()
    assert started.wait(30)
    with (
        pytest.raises(TryAgainError, match="held by another process"),
        lock(tmp_path / "lock", timeout_s=0.2, holder_hint="wait"),
    ):
        pass
    process.kill()
    process.join(30)
    with lock(tmp_path / "lock", timeout_s=10, holder_hint=""):
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    write_atomic(path, "what can be made again", durable=False)
    assert path.read_text() == "what can be made again"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
