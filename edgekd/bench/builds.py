"""What a device does with a build beside measuring it: compile it there, and answer samples with it.

It runs inside agent.pyz: Python 3.8, standard library, numpy, the engine.

{"mode": "compile", "runtime", "device", "precision", "onnx": path, "options": see the adapter, "folder": one to make,
"timings": file of TensorRT's timing cache or null, "archive": the .zip to write}: the build comes as an archive of its
files below `build/` and of the timing cache; the result describes it.

{"mode": "evaluate", "models": [one, as in `agent`], "feeds": an .npz with all samples, "batch", "outputs": the .npz to
write}: the outputs lie there under their index in the result's "outputs", for a name may be anything.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.bench.agent import engine_for, read_feeds
from edgekd.runtimes.protocol import infer_batched

BUILD, TIMINGS = "build", "timing.cache"


def compile_build(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compile one ONNX file, and pack what the engine made."""
    engine = engine_for(job)
    engine.check(job["device"], run=True, precisions=[job["precision"]])
    folder, timings = Path(job["folder"]), job["timings"]
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    options = {**job["options"], "precision": job["precision"], "timing_cache": timings}
    started = time.monotonic()
    build = engine.compile(Path(job["onnx"]), folder, device=job["device"], threads=1, options=options)
    seconds = time.monotonic() - started
    os.unlink(job["onnx"])  # what is packed needs its room
    with zipfile.ZipFile(job["archive"], "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(str(path), f"{BUILD}/{path.name}")
        if timings and os.path.exists(timings):
            archive.write(timings, TIMINGS)
    shutil.rmtree(str(folder), ignore_errors=True)
    return {
        "file": build.file,
        "inputs": [info.as_dict() for info in build.inputs],
        "outputs": [info.as_dict() for info in build.outputs],
        "layers": [vars(layer) for layer in build.layers],
        "facts": dict(build.facts),
        "arch": platform.machine(),
        "seconds": round(seconds, 3),
    }


def evaluate_build(job: Mapping[str, Any]) -> dict[str, Any]:
    """Answer every sample of the feeds with the one model of the job."""
    feeds = read_feeds(job["feeds"])
    (model,) = job["models"]
    engine = engine_for(model)
    session = engine.load(Path(model["path"]), device=model["device"], threads=model["threads"])
    bound = {info.name: feeds[info.name].astype(info.dtype, copy=False) for info in session.inputs}
    found = infer_batched(session, bound, job["batch"])
    session.close()
    names = sorted(found)
    arrays: dict[str, Any] = {str(index): found[name] for index, name in enumerate(names)}
    np.savez(job["outputs"], **arrays)
    return {"outputs": names}


MODES = {"compile": compile_build, "evaluate": evaluate_build}
