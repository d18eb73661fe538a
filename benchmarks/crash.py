"""What a crash costs: a run is stopped at random moments, and run again. Does it end as if nothing had been?

    python benchmarks/crash.py [--kills 100] [--full 20] [--signals 20] [--seed 0] [--json FILE]

A small run (tiny networks on digits, through export and builds for OpenVINO and ONNX Runtime) is first left alone; its
weights and ONNX files are the reference. Then, each time in an empty folder, it is stopped: its process group killed
(SIGKILL), ended by SIGTERM or SIGINT, or its disk (a small tmpfs) filled but for a random rest, so that a random write
fails. Right after it the store must hold no half artefact. The same command is run again and must end with exit code 0,
with the reference's bytes, and with a folder that `edgekd verify` accepts. A moment that comes after the run's end is
drawn again. With --json every trial is kept as it ends, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.bench.machine import environment
from edgekd.files import sha256_file, write_atomic
from edgekd.pipeline.verify import verify_folder
from edgekd.store import Store

PIPELINE = """\
name: crash
data: {digits: {}, limit: {train: 320}}
train: {batch: 32}
stages:
  - teacher: {model: convnet, args: {width: 8}, epochs: 6}
  - distill: {student: convnet, args: {width: 4}, epochs: 6}
  - quantize: {self_distillation: true, epochs: 2}
  - export: {min_agreement: 0.5, max_noise: 10}
  - compile: {}
targets:
  ov: {runtime: openvino}
  ort: {runtime: onnxruntime}
"""
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
TMPFS_BYTES = 128_000_000
DRAWS = 10
LIMIT_S = 600


class Place:
    """A folder with the pipeline file, a store and the folder of the run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.store = folder, folder / "out", folder / "store"
        (folder / "crash.yaml").write_text(PIPELINE)

    def start(self) -> subprocess.Popen[str]:
        """The run, in a process group of its own that hears SIGINT."""
        words = ["run", str(self.folder / "crash.yaml"), "--out", str(self.out), "--store", str(self.store)]
        return subprocess.Popen(
            [sys.executable, "-m", "edgekd", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def finish(self) -> tuple[int, str]:
        """Run to the end: exit code and what was said."""
        process = self.start()
        said = process.communicate(timeout=LIMIT_S)[1]
        return process.returncode, said

    def results(self) -> dict[str, str]:
        """Digests of weights and ONNX files by path."""
        found = [p for kind in ("safetensors", "onnx") for p in (self.out / "artifacts").rglob(f"*.{kind}")]
        shown = [path for path in found if not path.name.startswith(".")]  # temporary files are hidden ones
        return {path.relative_to(self.out).as_posix(): sha256_file(path) for path in sorted(shown)}

    def half_artefacts(self, reference: dict[str, str]) -> list[str]:
        """What would be served and is not whole: in the store, or among the results."""
        wrong = Store(self.store).check()[1]
        return wrong + [name for name, sha256 in self.results().items() if reference.get(name) != sha256]


def stopped(place: Place, kind: str, moment_s: float) -> int | None:
    """Stop a run by a signal at a moment; its exit code, or None when it had ended by itself."""
    process = place.start()
    try:
        process.communicate(timeout=moment_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, SIGNALS[kind])
        process.communicate(timeout=LIMIT_S)
        return process.returncode or None  # 0: it had just ended
    return None


def filled(place: Place, left: int) -> int | None:
    """Fill the disk of a run in its first stage but for `left` bytes; its exit code, None when it ended well."""
    filler = place.folder / "filler"
    process = place.start()
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("teacher:"):
            break
    with filler.open("wb") as stream:
        while (room := os.statvfs(place.folder).f_bavail * os.statvfs(place.folder).f_frsize - left) > 0:
            with contextlib.suppress(OSError):  # the run took some of it meanwhile
                os.posix_fallocate(stream.fileno(), 0, room)
                break
    process.communicate(timeout=LIMIT_S)
    filler.unlink()
    return process.returncode or None


@contextlib.contextmanager
def folder_of(kind: str) -> Iterator[Path]:
    """An empty folder; for `full` on a small disk of its own."""
    with tempfile.TemporaryDirectory(prefix="edgekd-crash-") as name:
        if kind != "full":
            yield Path(name)
            return
        mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", name]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def trial(kind: str, index: int, seed: int, reference: dict[str, Any]) -> dict[str, Any]:
    """Stop one run and finish it."""
    draw = random.Random(f"{seed} {kind} {index}")
    for _ in range(DRAWS):
        share = draw.random()
        with folder_of(kind) as folder:
            place = Place(folder)
            if kind == "full":
                code = filled(place, round(share * reference["bytes"]))
            else:
                code = stopped(place, kind, share * reference["seconds"])
            if code is None:
                continue
            half = place.half_artefacts(reference["files"])
            again, said = place.finish()
            same = place.results() == reference["files"]
            wrong = verify_folder(place.out).problems if again == 0 else [said[-300:]]
            ended = {"exit_code": code, "again_exit_code": again, "identical": same, "half_artefacts": half}
            return {"kind": kind, "index": index, "share": round(share, 4), **ended, "problems": wrong}
    raise SystemExit(f"{kind} {index}: no moment of {DRAWS} came before the run's end")


def reference_run() -> dict[str, Any]:
    """The run that nothing disturbs: seconds, bytes on disk, digests. The first of two warms caches up."""
    for _ in range(2):
        with folder_of("kill") as folder:
            place, started = Place(folder), time.monotonic()
            code, said = place.finish()
            if code != 0:
                raise SystemExit(f"the undisturbed run ended with {code}:\n{said[-1000:]}")
            seconds = time.monotonic() - started
            size = sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())
            found = {"seconds": round(seconds, 2), "bytes": size, "files": place.results()}
    return found


def table(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each way to be stopped."""
    rows = []
    for kind in dict.fromkeys(t["kind"] for t in trials):
        own = [t for t in trials if t["kind"] == kind]
        row = {"kind": kind, "stopped": len(own), "ended_well": sum(t["again_exit_code"] == 0 for t in own)}
        row |= {"identical": sum(t["identical"] for t in own), "verified": sum(not t["problems"] for t in own)}
        codes = sorted({t["exit_code"] for t in own})
        rows.append({**row, "half_artefacts": sum(bool(t["half_artefacts"]) for t in own), "exit_codes": codes})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--signals", type=int, default=20, help="shared by SIGTERM and SIGINT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="keep every trial here, and go on from what is there")
    options = parser.parse_args()
    wanted = {"kill": options.kills, "full": options.full}
    wanted |= {"terminate": options.signals - options.signals // 2, "interrupt": options.signals // 2}
    document: dict[str, Any] = {"seed": options.seed, "trials": []}
    if options.json and options.json.is_file():
        kept = json.loads(options.json.read_text())
        document["trials"] = kept["trials"] if kept["seed"] == options.seed else []
    document["environment"] = environment(["torch", "onnx", "onnxruntime", "openvino", "numpy"]) | {"host": None}
    try:
        with folder_of("full"):
            pass
    except (OSError, subprocess.CalledProcessError):
        wanted.pop("full")
        document["left_out"] = "full: mounting a small tmpfs needs root"
    reference = reference_run()
    document["undisturbed_seconds"], started = reference["seconds"], time.monotonic()
    done = {(t["kind"], t["index"]) for t in document["trials"]}
    todo = [(kind, i) for kind, count in wanted.items() for i in range(count) if (kind, i) not in done]
    for place, (kind, index) in enumerate(todo):
        document["trials"].append(trial(kind, index, options.seed, reference))
        document["table"] = table(document["trials"])
        if options.json:
            write_atomic(options.json, json.dumps(document, indent=1) + "\n")
        each = (time.monotonic() - started) / (place + 1)
        print(
            f"{kind} {index}: {document['trials'][-1]}  ({each:.0f} s each, {len(todo) - place - 1} to go)", flush=True
        )
    print(
        f"{'stopped by':<10} {'times':>6} {'ended well':>11} {'identical':>10} {'verified':>9} {'half artefacts':>15}"
    )
    for row in table(document["trials"]):
        ends = f"{row['ended_well']:>11} {row['identical']:>10} {row['verified']:>9} {row['half_artefacts']:>15}"
        print(f"{row['kind']:<10} {row['stopped']:>6} {ends}  exit codes {row['exit_codes']}")


if __name__ == "__main__":
    main()
