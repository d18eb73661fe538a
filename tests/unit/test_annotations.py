"""Annotations of a GitHub job: what stands at a place of a file is shown there, whatever the text and the folder."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from edgekd.pipeline.log import Log, annotate


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, and a job that works in one of its folders."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path / "models")
    return tmp_path


def said(message: str, *, form: str = "text") -> list[str]:
    stream = io.StringIO()
    Log(form=form, stream=stream).error(message, None)
    return [line for line in stream.getvalue().splitlines() if line.startswith("::")]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("p.yaml:3:5: 1 of 2, 50% off", "::error file=models/p.yaml,line=3,col=5::1 of 2, 50%25 off"),
        ("../p.yaml:3:5: a: b", "::error file=p.yaml,line=3,col=5::a: b"),
        ("/elsewhere/my, p.yaml:3:5: no", "::error file=/elsewhere/my%2C p.yaml,line=3,col=5::no"),
        ("p.yaml:3:5: two\nlines", "::error file=models/p.yaml,line=3,col=5::two%0Alines"),
    ],
)
def test_a_place_is_given_from_the_root_of_the_checkout(job: Path, message: str, expected: str) -> None:
    assert said(message) == [expected]


def test_what_has_no_place_is_no_annotation(job: Path) -> None:
    assert said("another run holds the folder") == said("--set a.b=1: no such key") == []


def test_a_log_in_json_stays_json(job: Path) -> None:
    assert said("p.yaml:3:5: no", form="json") == []


def test_elsewhere_than_in_a_job_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    stream = io.StringIO()
    annotate("p.yaml:3:5: no", stream)
    assert stream.getvalue() == ""
