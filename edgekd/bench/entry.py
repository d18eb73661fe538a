"""The program in agent.pyz: one line of job JSON on standard input, one line of result JSON on standard output.

    python agent.pyz

Progress goes to standard error in lines that start with "progress: ". The program ends when its standard input closes,
so that a killed parent or a dropped connection leaves nothing running. A job of mode "probe" (see `probe`) needs the
standard library alone; the others (see `agent`, `load_jobs` and `builds`) numpy and the engine. Python 3.8.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from typing import IO, Any

from edgekd.errors import EdgekdError, UnavailableError


def main() -> None:
    """Answer one job and end the process; an engine's own clean-up at exit is not waited for."""
    results = _claim_standard_output()
    job_line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_when_input_closes, daemon=True).start()
    results.write(json.dumps(answer(job_line)) + "\n")
    results.flush()
    os._exit(0)


def answer(job_line: bytes) -> dict[str, Any]:
    """The result of a job, or {"error": {"kind": "unavailable"|"failed", "message", "hint"}}.

    An engine's own words are in "said" as a whole; the message has their last line.
    """
    try:
        return _work(json.loads(job_line))
    except EdgekdError as error:
        kind = "unavailable" if isinstance(error, UnavailableError) else "failed"
        return {"error": {"kind": kind, "message": error.message, "hint": error.hint}}
    except (
        Exception
    ) as error:  # whatever an engine raises must reach the host as a result, with its traceback beside it
        traceback.print_exc()
        # Engines write whole pages; what is last in them says why.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = f"{type(error).__name__}: {lines[-1] if lines else 'no reason was given'}"
        return {"error": {"kind": "failed", "message": message, "hint": None, "said": str(error)}}


def _work(job: dict[str, Any]) -> dict[str, Any]:
    if job.get("mode") == "probe":
        from edgekd.bench import probe

        return probe.facts(job)
    try:
        from edgekd.bench import agent, builds, load_jobs
    except ImportError as error:
        hint = f"{sys.executable} -m pip install numpy"
        raise UnavailableError(f"the measuring agent cannot start: {error}", hint=hint) from error
    return agent.work(job, {**load_jobs.MODES, **builds.MODES})


def _claim_standard_output() -> IO[str]:
    """Keep standard output for the result; whatever an engine prints there goes to standard error from now on."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return results


def _end_when_input_closes() -> None:
    # os.read and not sys.stdin: a thread inside a buffered read would block the interpreter's own end.
    while os.read(0, 4096):
        pass
    os._exit(1)
