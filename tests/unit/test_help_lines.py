"""Help lines name what there is: the option that was given, the folder that was meant, the package that is missing."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from edgekd.cli import evaluate_command
from edgekd.cli.main import run as edgekd
from edgekd.errors import DataError, UnavailableError
from edgekd.export import card
from edgekd.pipeline import keys
from edgekd.store import remote

COMPRESS = ("compress", "--data", "images", "--target", "onnxruntime", "--model")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ten images and networks that do not work, all of it the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keys, "sources_of", lambda kind, store: {})  # parsing all of our own takes seconds
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"images/{label}/{index}.png")
    (tmp_path / "exi.py").write_text("exit(3)\n")
    (tmp_path / "boom_nets.py").write_text("def boom(width=4):\n    raise RuntimeError('no')\n")
    (tmp_path / "emptyd").mkdir()
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Path("x")))
    (tmp_path / "p.yaml").write_text("name: p\ndata: {digits: {}}\nmodel: resnet8\nstages:\n  - export: {}\n")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    with pytest.raises(SystemExit) as end:
        edgekd(words)
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


CASES = {
    "a module that exits": ([*COMPRESS, "exi:f"], 2, "help: to see all of it: cd {here} && python -c 'import exi'\n"),
    "a factory that raises": (
        [*COMPRESS, "boom_nets:boom"],
        2,
        "help: look at its arguments (`args:` in a file, --args on the command line); it takes (width=4)\n",
    ),
    "weights that run code": (
        [*COMPRESS, "resnet8", "--weights", "evil.pt"],
        2,
        "python -m edgekd.models.convert ./evil.pt ./evil.safetensors;",
    ),
    "a folder without images": (
        ["compress", "--data", "emptyd", "--target", "onnxruntime", "--model", "resnet8"],
        2,
        "error: --data emptyd holds no images\n",
    ),
    "a file in the way": (["new", "exi.py/x"], 2, "help: choose a folder that can be made\n"),
    "a key where none may be": (["plan", "p.yaml", "--set", "data.digits.path=x"], 2, "help: it takes none\n"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_help_line_names_what_was_given(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, code, line = CASES[case]
    found, said = told(capsys, *words)
    assert (found, line.format(here=here) in said) == (code, True), said
    assert "/../" not in said
    assert "stages are kept" not in said


def test_a_broken_image_is_left_out_by_the_file_of_a_dry_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "images/a/0.png").write_bytes(b"cut")
    code, said = told(capsys, *COMPRESS, "resnet8")
    assert code == DataError.exit_code
    assert "`skip_broken: 0.01` under `data:` of the file that --dry-run writes" in said
    assert not (here / "runs").exists()
    assert told(capsys, *COMPRESS, "resnet8", "--dry-run")[0] == 0
    assert (here / "runs/compress/pipeline.yaml").is_file()


def test_the_package_of_a_remote_store_is_that_of_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(url: str, **more: object) -> None:
        raise ImportError("install it", name="that")

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    for url, hint in {"gs://x/y": "pip install gcsfs", "filecache::az://x": "pip install adlfs"}.items():
        with pytest.raises(UnavailableError) as error:
            remote._open(url, url)
        assert error.value.hint == hint
    with pytest.raises(UnavailableError) as error:
        remote._open("s3://x/y", "s3://x/y")
    assert "remote]" in (error.value.hint or "")


def test_a_score_is_of_all_images_so_none_is_left_out(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise DataError("a.png is broken", hint="or leave broken ones out: `data.skip_broken: 0.01`")

    monkeypatch.setattr(card, "read_card", lambda build: (build, {"runtime": "onnxruntime", "device": "CPU"}))
    monkeypatch.setattr(evaluate_command, "_opened", lambda *given: (None, "test"))
    monkeypatch.setattr(evaluate_command, "_scored", broken)
    code, said = told(capsys, "evaluate", "build", "--data", "images")
    assert code == DataError.exit_code
    assert said.endswith("help: replace or remove it; `edgekd data check images` lists all that are broken\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("store gc --keep abc", "error: --keep abc: it should be a whole number\n"),
        ("data check x --skip-broken y", "error: --skip-broken y: it should be a number\n"),
        ("run p.yaml --nproc 0", "error: --nproc 0: it should be at least 1\n"),
        ("plan p.yaml --store-mode x", "error: --store-mode x: 'x' is not one of 'ro', 'rw'\n"),
        ("run", "error: missing argument 'FILE'\n"),
    ],
)
def test_a_value_that_cannot_be_is_shown_in_our_words(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = told(capsys, *words.split())
    assert code == 2
    assert err.startswith(said + "help: `edgekd ")
