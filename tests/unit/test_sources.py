"""Digests of edgekd's own sources: of the code alone, at once after a change, and parsed once for all stores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgekd.models import source_digest
from edgekd.pipeline import sources
from edgekd.pipeline.sources import SourceMemo, sources_of
from edgekd.stages.kinds import KINDS
from edgekd.store import Store


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A room with one file, in a root of its own."""
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1\n")
    return tmp_path / "room"


def parses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(path: Path) -> None:
        raise AssertionError(f"{path} was parsed")

    monkeypatch.setattr(sources.source, "code_of", parsed)


def test_a_source_that_changed_has_another_digest_at_once(room: Path, tmp_path: Path) -> None:
    """Also where its size and time of change are the same: what changed a moment ago is read every time."""
    memo, file, found = SourceMemo(tmp_path / "sources.json"), room / "a.py", []
    for text, when in (("x = 1\n", 10), ("x = 2\n", 10), ("x = 2\n", 20), ("x = 1  # as before\n", 30)):
        file.write_text(text)
        os.utime(file, (when, when))
        found.append(memo.digest([room]))
    assert found[0] == found[3] != found[1] == found[2]
    (room / "b.py").touch()
    assert memo.digest([room]) not in found


def test_a_remembered_digest_is_that_of_the_syntax_trees(room: Path, tmp_path: Path) -> None:
    for _ in range(2):
        memo = SourceMemo(tmp_path / "sources.json")
        assert memo.digest([room]) == source_digest([room], root=tmp_path)
        memo.keep()


def test_a_settled_source_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "a.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(sources.time, "time_ns", lambda: source.stat().st_ctime_ns + sources._SETTLED_NS)
    first = sources._bytes_digest(str(source))
    monkeypatch.setattr(sources, "sha256_file", lambda path: "read")
    assert sources._bytes_digest(str(source)) == first
    source.write_text("x = 22\n")
    assert sources._bytes_digest(str(source)) == "read"


def test_a_new_store_takes_what_the_user_cache_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = sources_of(KINDS["bench"], Store(tmp_path / "first"))
    parses_nothing(monkeypatch)
    assert sources_of(KINDS["bench"], Store(tmp_path / "second")) == first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert sources_of(KINDS["bench"], Store(tmp_path / "second")) == first


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = sources_of(KINDS["bench"], Store(tmp_path / "store"))
    parses_nothing(monkeypatch)
    assert sources_of(KINDS["bench"], Store(tmp_path / "store")) == first


def test_without_a_home_the_store_remembers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(sources, "user_cache", homeless)
    sources_of(KINDS["bench"], Store(tmp_path / "store"))
    assert (tmp_path / "store" / "sources.json").is_file()


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "\0"])
def test_a_spoiled_memory_is_made_anew(content: str, room: Path, tmp_path: Path) -> None:
    place = tmp_path / "sources.json"
    place.write_text(content)
    memo = SourceMemo(place)
    found = memo.digest([room])
    memo.keep()
    assert found == source_digest([room], root=tmp_path)
    assert list(sources._read(str(place), *sources._state(place)).values()) == [memo._digest_of(str(room / "a.py"))]


def test_what_was_edited_while_it_was_parsed_is_not_remembered(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = sources.source.code_of

    def edited(path: Path) -> tuple[str, frozenset[str]]:
        path.write_text("x = 2\n")
        return parsed(path)

    with monkeypatch.context() as patch:
        patch.setattr(sources.source, "code_of", edited)
        memo = SourceMemo(tmp_path / "sources.json")
        memo.digest([room])
        memo.keep()
    (room / "a.py").write_text("x = 1\n")
    assert SourceMemo(tmp_path / "sources.json").digest([room]) == source_digest([room], root=tmp_path)


def test_other_ways_of_making_digests_share_no_memory(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memo = SourceMemo(tmp_path / "sources.json")
    memo.digest([room])
    memo.keep()
    parses_nothing(monkeypatch)
    SourceMemo(tmp_path / "sources.json").digest([room])
    monkeypatch.setattr(sources, "_made_by", lambda: "another")
    with pytest.raises(AssertionError, match="was parsed"):
        SourceMemo(tmp_path / "sources.json").digest([room])
