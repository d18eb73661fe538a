"""The documentation: the site builds without a warning, its reference is true, container files pass a linter."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
BIN = Path(sys.executable).parent


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "zensical"), "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of what the site is built of."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def test_the_site_builds_strictly_and_asks_no_other_host_for_anything(site: Path) -> None:
    done = build(site)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        text = (site / "site" / page.with_suffix(".html")).read_text()
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", text), page
    (site / "docs" / "index.md").write_text("[gone](nowhere.md)\n")
    assert build(site).returncode != 0


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M))
    assert named == {str(page) for page in PAGES}


def test_the_reference_is_what_the_sources_say() -> None:
    command = [sys.executable, str(ROOT / "docs" / "make_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "containers").iterdir()), ids=lambda path: path.stem)
def test_container_files_pass_the_linter(path: Path) -> None:
    done = subprocess.run([str(BIN / "hadolint"), str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    copied = [word for line in path.read_text().splitlines() if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
