"""What all tests share: one torch thread, and where the optional shared material lies."""

from __future__ import annotations

import gc
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from quick_export import remember_operators

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Processes that tests start would compile the whole package anew each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_elsewhere: dict[str, object] = {}  # modules that are not of a test's folder
_SHARED = Path(__file__).parents[1].parent / "shared"


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it, again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def users_code(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test puts on the import path and imports from its own folder is gone before the next one starts."""
    remember_operators()
    monkeypatch.setattr(sys, "path", [*sys.path])
    if imports := sys.modules.get("edgekd.models.imports"):
        monkeypatch.setattr(imports, "_bases", [])
    yield
    if imports := sys.modules.get("edgekd.models.imports"):
        imports._bases.clear()
        imports._beside.clear()
    if texts := sys.modules.get("edgekd.config.docstrings"):
        texts._of_module.cache_clear()
    base = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if _elsewhere.get(name) is module:
            continue  # there are thousands of modules, and thousands of tests
        known = getattr(module, "__dict__", {})  # not by attribute: torch.classes has any
        places = [known.get("__file__") or "", *(known.get("__path__") or ())]
        if any(place.startswith(base) for place in places):
            del sys.modules[name]
        else:
            _elsewhere[name] = module


@pytest.fixture
def shared() -> Path:
    """The folder with real images and a user's network, beside the repository; skips where it is not there."""
    if not _SHARED.is_dir():
        pytest.skip("the folder ../shared is not here: it holds real images and is not part of the repository")
    return _SHARED


@pytest.fixture
def own_code(tmp_path: Path) -> Path:
    """A folder with the package and the pipeline file that docs/extending.md shows; `dist` has its entry points."""
    text = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.M | re.S)
    folder = tmp_path / "own"
    (folder / "my_pkg").mkdir(parents=True)
    for language, block in blocks:
        if language == "python":
            (folder / block.partition("\n")[0].removeprefix("# ")).write_text(block)
        elif language == "yaml":
            (folder / "p.yaml").write_text(block)
        else:
            groups = tomllib.loads(block)["project"]["entry-points"]
            lines = [[f"[{group}]", *(f"{n} = {v}" for n, v in names.items())] for group, names in groups.items()]
            info = folder / "dist" / "my_pkg-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_pkg\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text("\n".join(line for group in lines for line in group))
    return folder
