"""report.html: one file that needs no network, for a desk and for a phone, in light and in dark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.report import charts, latency_charts, lineage, quantization, table, words
from edgekd.report.attachments import Attachment, attachments, detail_tables, loss_curves
from edgekd.report.drawings import Drawings, Remembered
from edgekd.report.page import template
from edgekd.report.schema import Report
from edgekd.report.verdict import sentences

LARGEST_BYTES = 300_000
_LARGEST_DATA = 100_000
_FITS = ((200, 36), (40, 36), (40, 12), (10, 0))  # rows of a table, drawings of a group
_LONGEST_MESSAGE = 4000


def html(report: Report, folder: Path, manifest: Mapping[str, Any], remembered: Remembered | None = None) -> str:
    """The report as one HTML page of less than 300 kB; `folder` is where its details lie.

    `remembered`: drawings of earlier runs, for a manifest that holds the digests of all details.
    """
    page_template = template("template.html.j2")
    if remembered is None:
        drawings = _drawings(report, folder)
    else:
        drawings = remembered.drawings(report, manifest, lambda drawn: _drawings(drawn, folder))
    page = ""
    for most_rows, most_drawings in _FITS:
        shown = [(title, found[:most_drawings], len(found[most_drawings:])) for title, found in drawings]
        page = page_template.render(
            **_context(report, folder, manifest, most_rows), drawings=shown, data=_embedded(report)
        )
        if len(page.encode()) < LARGEST_BYTES:
            break
    return page


def _context(report: Report, folder: Path, manifest: Mapping[str, Any], most_rows: int) -> dict[str, Any]:
    first, *rest = sentences(report)
    sections = [
        ("Budgets", table.gate_table(report)),
        ("Comparisons", table.comparison_table(report)),
        ("Models", table.model_table(report)),
        ("Latency", table.latency_table(report)),
        ("Stages", table.stage_table(report)),
        *detail_tables(report, folder),
        ("Environment", table.environment_table(report)),
    ]
    return {
        "report": report,
        "verdict": first[:_LONGEST_MESSAGE],
        "more": [line[:_LONGEST_MESSAGE] for line in rest],
        "result": _shape(table.result_table(report), most_rows),
        "ladder": [_ladder(detail, most_rows) for detail in attachments(report, folder, "ladder")],
        "lineage": lineage.lineage(report, manifest),
        "commands": [words.cell(line) for line in lineage.commands(report, manifest)],
        "sections": [(title, _shape(rows, most_rows)) for title, rows in sections if len(rows) > 1],
    }


def _ladder(detail: Attachment, most: int) -> dict[str, Any]:
    found = quantization.ladder(detail)
    rows = [[words.cell(text) for text in row] for row in found.rows]
    return _shape(rows, most) | {"marks": found.marks}


def _shape(rows: table.Rows, most: int) -> dict[str, Any]:
    header, *body = rows
    right = table.numeric_columns(rows) if body else []
    left_out = max(0, len(body) - most)
    return {"header": header, "rows": body[:most], "right": right, "left_out": left_out, "marks": []}


def _drawings(report: Report, folder: Path) -> Drawings:
    learning = [drawing for phase in loss_curves(report, folder) for drawing in charts.learning(phase)]
    by_launch = latency_charts.ratios_by_launch(report, folder)
    long_runs = attachments(report, folder, "sustain")
    sustained = [drawing for detail in long_runs for drawing in latency_charts.sustained(detail)]
    groups = [
        ("Trade-off and comparisons", [charts.trade_off(report), charts.forest(report.comparisons, by_launch)]),
        ("Latency of single inferences", charts.distributions(report, folder)),
        ("Latency over time", [*latency_charts.over_time(report, folder), *sustained]),
        ("Throughput", latency_charts.throughput(report)),
        ("Latency under load", latency_charts.load(report)),
        ("Quantization", _quantization(report, folder)),
        ("Layers by executed precision", _layers(report, folder)),
        ("Learning", learning),
    ]
    kept = [(title, [drawing for drawing in found if drawing]) for title, found in groups]
    return [(title, found) for title, found in kept if found]


def _quantization(report: Report, folder: Path) -> list[str]:
    drawn = [d for detail in attachments(report, folder, "arms") for d in quantization.arms(detail)]
    return drawn + [
        d for detail in attachments(report, folder, "sensitivity") for d in quantization.sensitivity(detail)
    ]


def _layers(report: Report, folder: Path) -> list[str]:
    return [d for detail in attachments(report, folder, "layers") for d in quantization.layers(detail)]


def _embedded(report: Report) -> str:
    text = json.dumps(report.model_dump(mode="json"), ensure_ascii=True, separators=(",", ":"))
    # Inside <script> only these three could end or upset the element; as JSON escapes they are the same text.
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text if len(text) <= _LARGEST_DATA else "null"
