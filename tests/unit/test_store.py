"""The store: whole artefacts or none, verified when read, one builder at a time."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from edgekd.errors import TryAgainError
from edgekd.files import lock, write_atomic
from edgekd.store import Store
from edgekd.store.collect import collect

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
    count, size = collect(store, keep=2)
    assert (count, size > 0) == (2, True)
    assert [store.get(key) is not None for key in keys] == [False, False, True, True]


def test_collecting_deletes_caches_that_were_not_used_lately(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for i in range(3):
        store.cache("teacher", str(i)).mkdir(parents=True)
        (store.cache("teacher", str(i)) / "values.bin").write_bytes(b"x" * 5000)
        time.sleep(0.02)
    assert collect(store, keep=1)[0] == 2
    assert [path.name for path in tmp_path.glob("caches/*/*")] == ["2"]


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
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
