"""Draw a report after every run, also a failed one: report.json, report.md, report.html and junit.xml in its folder."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekd.errors import ConfigError
from edgekd.files import write_atomic
from edgekd.report.drawings import Remembered
from edgekd.report.html import html
from edgekd.report.junit import junit
from edgekd.report.lineage import read_manifest
from edgekd.report.markdown import markdown
from edgekd.report.schema import SCHEMA_VERSION, Report

REPORT_FILE = "report.json"
DRAWN = (REPORT_FILE, "report.html", "report.md", "junit.xml")


def draw(
    report: Report,
    folder: Path,
    manifest: Mapping[str, Any] | None = None,
    remembered: Remembered | None = None,
) -> None:
    """Write the four files; in a GitHub job, also append the Markdown to the job's summary page.

    `folder` is the run's folder: loss curves, samples and other details are read from the paths in the report below it,
    and what is missing there is left out of the drawing. `manifest`: what manifest.json will say; by default what it
    says. `remembered`: drawings of earlier runs, for files that are what the manifest says.
    """
    write_atomic(folder / REPORT_FILE, report.model_dump_json(indent=2) + "\n")
    text = markdown(report, folder)
    write_atomic(folder / "report.md", text)
    write_atomic(folder / "junit.xml", junit(report))
    _append_to_job_summary(text)
    manifest = read_manifest(folder) if manifest is None else manifest
    write_atomic(folder / "report.html", html(report, folder, manifest, remembered))


def read_report(path: Path) -> Report:
    """The report in a run's folder, or in a report.json file.

    Raises:
        ConfigError: there is none, or it is not a report of this schema version.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"cannot read {file}: {error.strerror}", hint="give a folder that `edgekd run` has written"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(
            f"{file} is not a report of schema version {SCHEMA_VERSION}: {place}: {first['msg']}",
            hint="write it again with this version of edgekd: `edgekd run FILE` takes finished stages from the store",
        ) from None


def _append_to_job_summary(text: str) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    # A summary page that cannot be written is no reason for a run to fail; a pipe could block it for ever.
    with contextlib.suppress(OSError, ValueError):
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "a", encoding="utf-8") as summary:
                summary.write(text + "\n")
