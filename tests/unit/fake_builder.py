"""A fake engine that also builds: an "ONNX file" is JSON that says what happens, a build answers twice its input."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

from fake_runtime import FakeRuntime, FakeSession

from edgekd.errors import CompileError
from edgekd.runtimes.protocol import Build, Layer, TensorInfo

NAMES = ("model.json", "with space.bin", "a'b\";$(touch pwned).bin")


class BuiltSession(FakeSession):
    outputs = (TensorInfo("file", "float32", (-1, 3)),)

    def bind(self, feeds):
        super().bind(feeds)
        self.fed = feeds["x"]
        assert len(self.fed) <= self.told.get("max_batch", 1000)

    def fetch(self):
        if self.told.get("no_memory_when_run"):
            raise RuntimeError("CUDA out of memory: tried to allocate 2.00 GiB")
        return {"file": self.fed * 2}


class FakeBuilder(FakeRuntime):
    precisions = ("f32", "f16")

    def check(self, device, *, run, precisions=()):
        super().check(device, run=run)

    def compile(self, onnx, folder, *, device, threads, options):
        told = json.loads(onnx.read_text())
        if told.get("sleep_unless"):  # once: the second try finds the file
            mark = Path(told["sleep_unless"])
            if not mark.exists():
                mark.write_text(str(os.getpid()))
                time.sleep(600)
        if told.get("refuse"):
            raise CompileError("fake refused model.onnx: no such operation", hint="use opset 20")
        _run_out_of_memory(told.get("no_memory"))
        for name in NAMES:
            (folder / name).write_text(onnx.read_text())
        if told.get("large_bytes"):
            (folder / "large.bin").write_bytes(b"x" * told["large_bytes"])
        if options.get("timing_cache"):
            with open(options["timing_cache"], "a") as timings:
                timings.write("timed ")
        layers = (Layer("stem", "Conv", options["precision"]),)
        tensor = TensorInfo("x", "float32", (-1, 3))
        return Build("model.json", (tensor,), BuiltSession.outputs, layers, {"fake": "1.0"})

    def load(self, path, *, device, threads):
        super().load(path, device=device, threads=threads)
        return BuiltSession(json.loads(Path(path).read_text()))


def _run_out_of_memory(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "bad_alloc":
        sys.stderr.write("terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n")
        sys.stderr.flush()
        ctypes.CDLL(None).abort()
    if how == "said":
        raise RuntimeError("[graph.cpp] Requested amount of GPU memory (17 bytes) could not be allocated.")
