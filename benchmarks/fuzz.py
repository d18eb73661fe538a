"""Damaged inputs against the readers of data and of pipeline files: each is read, or refused by an error of ours.

    python benchmarks/fuzz.py [INPUTS] [SEED]     # INPUTS of each kind, 10000 if not given

Bytes of good files are turned, cut off, repeated and put elsewhere. Each kind runs in a process of its own, so that a
crash of a library shows, with 12 GiB of address space and 10 s for an input. What fails is kept in fuzz-failures/, and
the exit code is 1.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))

from data_sets import encoded, npz_set, opened, parquet_set, picture, saved_to_disk, tar_set
from test_data_sources import FEATURES, hf_table, rows, samples, write_csv

from edgekd.config import parse_tree
from edgekd.data.readers.images import ImageDecoder, ImageRules
from edgekd.errors import EdgekdError

FORMS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
PIPELINE = Path(__file__).parents[1] / "pipelines" / "digits.yaml"
_WORDS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00\x01", b"99999999")


def damage(good: bytes, draw: random.Random) -> bytes:
    """A good file with some of its bytes changed, and sometimes parts of it moved, repeated or cut off."""
    content = bytearray(good)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        place = draw.randrange(len(content) + 1)
        what = draw.randrange(6)
        if what == 0 and content:
            content[place - 1] = draw.randrange(256)
        elif what == 1 and content:
            content[place - 1] ^= 1 << draw.randrange(8)
        elif what == 2:
            word = draw.choice(_WORDS)
            content[place : place + len(word)] = word
        elif what == 3:
            part = content[place : place + draw.randrange(64)]
            there = draw.randrange(len(content) + 1)
            content[there:there] = part
        elif what == 4:
            del content[place : place + draw.randrange(16)]
        elif draw.random() < 0.2:
            del content[place:]
    return bytes(content)


def images(form: str) -> tuple[bytes, Callable[[bytes], Any]]:
    decoder = ImageDecoder(ImageRules(3, (8, 8), "crop"))
    return encoded(picture(1, 23, 17), form), lambda content: decoder.decode([("a", content)], 1)


def files(folder: Path, source: str) -> tuple[bytes, Callable[[bytes], Any]]:
    """A good file of a source, and what reads a damaged one in its place."""
    if source == "webdataset":
        path = tar_set(folder / "set.tar", samples(4))
    elif source == "npz":
        path = npz_set(folder) / "train.npz"
    elif source == "csv":
        path = write_csv(folder, rows(["a", "b", "a"])) / "set.csv"
    elif source == "parquet":
        path = parquet_set(folder / "set", train=8, test=2) / "train.parquet"
    else:
        path = saved_to_disk(folder / "set", hf_table(8), FEATURES) / "data-00000-of-00001.arrow"
    columns = {"image": "img", "label": "label"} if source == "parquet" else {}
    place = path if source in ("webdataset", "npz", "csv") else folder / "set"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        opened(folder, validation=0, test=0, **{source: {"path": str(place), **columns}}).load("train")

    return path.read_bytes(), read


def run(kind: str, count: int, seed: int) -> int:
    """Try `count` inputs of a kind; how many ended in anything but an error of ours."""
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError("10 s")))
    draw, refused, failed = random.Random(f"{kind} {seed}"), 0, 0
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if kind == "yaml":
            good, read = PIPELINE.read_bytes(), lambda content: parse_tree(content.decode(errors="replace"), "a.yaml")
        else:
            good, read = images(kind) if kind in FORMS else files(Path(folder), kind)
        read(good)
        for number in range(count):
            content = damage(good, draw)
            signal.alarm(10)
            try:
                read(content)
            except EdgekdError:
                refused += 1
            except BaseException:
                failed += 1
                place = Path("fuzz-failures") / f"{kind}-{seed}-{number}"
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(content)
                place.with_suffix(".txt").write_text(traceback.format_exc())
            finally:
                signal.alarm(0)
    seconds = time.process_time() - start
    print(f"{kind:<12} {count} inputs, {refused} refused, {failed} failed, {seconds:.0f} s of CPU time", flush=True)
    return failed


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    bad = 0
    for kind in ("yaml", *FORMS, "webdataset", "npz", "csv", "parquet", "huggingface"):
        process = multiprocessing.get_context("fork").Process(target=_child, args=(kind, count, seed))
        process.start()
        process.join()
        if process.exitcode not in (0, 1):
            print(f"{kind:<12} crashed: exit code {process.exitcode}", flush=True)
        bad += process.exitcode != 0
    sys.exit(min(1, bad))


def _child(kind: str, count: int, seed: int) -> None:
    sys.exit(min(1, run(kind, count, seed)))


if __name__ == "__main__":
    main()
