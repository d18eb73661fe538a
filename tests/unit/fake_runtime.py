"""An engine without an engine: a model file is JSON, `{"sleep_ms": 2, "spin_ms": 0}`, and a call does just that."""

from __future__ import annotations

import ctypes
import json
import os
import threading
import time
from pathlib import Path

from edgekd.errors import CompileError, UnavailableError
from edgekd.runtimes.protocol import LayerTime, TensorInfo


class Clock:
    """Time that goes on only while a call is made."""

    def __init__(self):
        self.now_ns = 0

    def perf_counter_ns(self):
        return self.now_ns

    process_time_ns = perf_counter_ns

    def perf_counter(self):
        return self.now_ns / 1e9

    def call(self, before_ms, after_ms, at_s):
        """A call that takes one time before a moment, and another one from then on."""

        def run():
            self.now_ns += int((before_ms if self.now_ns < at_s * 1e9 else after_ms) * 1e6)

        return run


class FakeSession:
    outputs = ()

    def __init__(self, told, slots=None):
        self.inputs = (TensorInfo(told.get("input", "x"), "float32", (-1, 3)),)
        self.told = told
        self.calls = 0
        self.kept = []
        self.slots = slots

    def bind(self, feeds):
        assert all(array.dtype == "float32" for array in feeds.values())
        if self.told.get("crash"):
            ctypes.CDLL(None).abort()

    def run(self):
        self.calls += 1
        if self.told.get("leak_kb"):
            self.kept.append(bytearray(os.urandom(16)) * (self.told["leak_kb"] * 64))
        if self.slots is not None:  # as many calls get on at the same time as the engine has slots
            with self.slots:
                time.sleep(self.told["sleep_ms"] / 1e3)
            return
        sleep_ms = self.told.get("sleep_ms", 0) + float(os.environ.get("FAKE_LOAD_MS", "0"))
        if self.told.get("slow_every") and self.calls % self.told["slow_every"] == 0:
            sleep_ms = self.told["slow_ms"]
        if sleep_ms:
            time.sleep(sleep_ms / 1e3)
        end = time.thread_time_ns() + int(self.told.get("spin_ms", 0) * 1e6)
        while time.thread_time_ns() < end:
            pass

    def memory_bytes(self):
        return self.told.get("memory_bytes")

    def close(self):
        pass


class FakeRuntime:
    name = "fake"
    precisions = ("f32",)

    def version(self):
        return "1.0"

    def check(self, device, *, run):
        if device == "MISSING":
            raise UnavailableError("fake has no device MISSING", hint="use CPU")

    def profile(self, path, feeds, *, device, threads, runs, max_s):
        told = json.loads(Path(path).read_text())
        assert feeds["x"].dtype == "float32"
        layers = told.get("layers", [["stem", "Conv", "uint8", 0.25], ["head", "Gemm", "f32", 0.75]])
        return tuple(LayerTime(*layer) for layer in layers)

    def load_streams(self, path, *, device, threads, streams):
        first = self.load(path, device=device, threads=threads)
        slots = threading.Semaphore(first.told["slots"]) if first.told.get("slots") else None
        return [FakeSession(first.told, slots) for _ in range(streams)]

    def load(self, path, *, device, threads):
        print("an engine that chatters on standard output")
        os.write(1, b"natively, too\n")
        told = json.loads(Path(path).read_text())
        if told.get("pid_file"):
            Path(told["pid_file"]).write_text(str(os.getpid()))
        while told.get("wait_for") and not Path(told["wait_for"]).exists():
            time.sleep(0.02)
        if told.get("refuse"):
            raise CompileError("fake cannot read this file", hint="make another")
        if told.get("bug"):
            raise RuntimeError("deep inside the engine")
        if told.get("grow_mb"):
            self.memory = b"x" * (told["grow_mb"] * 2**20)
        return FakeSession(told)
