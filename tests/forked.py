"""The command line in processes of their own that have nothing left to import: forked from one that keeps to that.

Starting Python and importing torch, onnx and the engines costs seconds, and a test of the whole chain does it a dozen
times. Here a server imports them once for all tests of a worker and computes nothing; each call is a fork of it, with
arguments, folder, environment and streams of its own, and ends with its exit code. What Python reads of the environment
as it starts (PYTHONHASHSEED) and what needs a truly fresh process (lazy imports, kills) is tested with real ones.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from quick_export import remember_operators

HEAVY = (
    "torch.export",
    "torch.onnx._internal.exporter._core",
    "torch.utils.data",
    "openvino",
    "onnxruntime",
    "sklearn.datasets",
    "scipy.stats",
    "pyarrow.parquet",
    "jinja2",
    "networkx",
    "ruamel.yaml",
    "safetensors.torch",
)
_servers: dict[int, subprocess.Popen[str]] = {}  # by the process that started it


def edgekd(
    words: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 600
) -> subprocess.CompletedProcess[str]:
    """`edgekd WORDS..`, as `subprocess.run([sys.executable, "-m", "edgekd", *words])` with its output captured.

    Raises:
        TimeoutError: it took longer than `timeout_s`; it was killed.
    """
    server = _servers.get(os.getpid())
    if server is None or server.poll() is not None:
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        known = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=known, text=True
        )
        _servers[os.getpid()] = server
        atexit.register(_stop, server)
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        job = {
            "words": list(words), "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env),
            "out": str(out), "err": str(err), "timeout_s": timeout_s,
        }  # fmt: skip
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the process that calls are forked from has ended"
        code = json.loads(answer)
        if code is None:
            raise TimeoutError(f"edgekd {' '.join(words)} took longer than {timeout_s} s\n{err.read_text()}")
        return subprocess.CompletedProcess(["edgekd", *words], code, out.read_text(), err.read_text())


def _stop(server: subprocess.Popen[str]) -> None:
    server.kill()
    server.communicate()


def _serve() -> None:
    for name in HEAVY:
        importlib.import_module(name)
    edgekd = importlib.import_module("edgekd")
    for module in pkgutil.walk_packages(edgekd.__path__, "edgekd."):
        if module.name != "edgekd.__main__":
            importlib.import_module(module.name)
    remember_operators()
    _warm_up()
    gc.collect()
    gc.freeze()  # a fork does not look through, and so copy, what is here already
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(job)
        print(json.dumps(_ended(pid, job["timeout_s"])), flush=True)


def _warm_up() -> None:
    """What every run on an empty store makes first, and what is the same in all."""
    import torch

    from edgekd.export.onnx_file import write_onnx
    from edgekd.quantize.quantizer import convert, prepare
    from edgekd.quantize.settings import QuantizationSettings

    torch.set_num_threads(1)
    body = [torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)]
    network = torch.nn.Sequential(*body, torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    example = torch.zeros(2, 1, 8, 8)
    quantized = prepare(network, (example,), QuantizationSettings())
    with tempfile.TemporaryDirectory() as folder:
        for made in (network, convert(quantized)):
            write_onnx(made, {"x": example}, ("y",), Path(folder, "tiny.onnx"), opset=20, metadata={})


def _ended(pid: int, timeout_s: float) -> int | None:
    """The exit code of a child, negative for a signal; None if it had to be killed."""
    watched = os.pidfd_open(pid)
    in_time = select.select([watched], [], [], timeout_s)[0]
    os.close(watched)
    if not in_time:
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if in_time else None


def _become(job: Mapping[str, Any]) -> NoReturn:
    """From here on this process is that of the call."""
    os.setpgid(0, 0)
    for number, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = ["edgekd", *job["words"]]
    paths = [path for path in job["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [job["cwd"], *(path for path in paths if path not in sys.path)]  # as `python -m` has it
    importlib.import_module("numpy").random.seed()  # an own state each, as real processes have
    importlib.import_module("torch").seed()
    code: Any = 1
    try:
        importlib.import_module("edgekd.cli.main").run()
    except SystemExit as end:
        code = end.code or 0 if isinstance(end.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # destructors of libraries wait for threads that a fork does not have


if __name__ == "__main__":
    _serve()
