"""report.md: the verdict and the tables, for a pull request or a job's summary page."""

from __future__ import annotations

import re
from pathlib import Path

from edgekd.report import table
from edgekd.report.attachments import attachments, detail_tables
from edgekd.report.quantization import arm_table, ladder
from edgekd.report.schema import Report
from edgekd.report.verdict import sentences

_SIGNS = {"ok": "✅", "failed": "❌", "gate_failed": "❌"}
_UNDECIDED = "⚠️"
_SPECIAL = re.compile(r"([\\`*|~#])|(?<!\w)(_)|(_)(?!\w)|(\](?=[(\[:]))")


def markdown(report: Report, folder: Path | None = None) -> str:
    """The whole report as GitHub Markdown; with the folder in which its details lie also those of quantization."""
    first, *rest = sentences(report)
    open_ = report.status == "ok" and any(gate.verdict == "undecided" for gate in report.gates)
    parts = [
        f"# {_UNDECIDED if open_ else _SIGNS[report.status]} {escape(first)}",
        "\n".join(f"- {escape(line)}" for line in rest),
    ]
    sections = [
        ("Result", table.result_table(report)),
        ("Comparisons", table.comparison_table(report)),
        ("Budgets", table.gate_table(report)),
        ("Models", table.model_table(report)),
        ("Stages", table.stage_table(report)),
    ]
    sections[4:4] = _quantization(report, folder) if folder is not None else []
    parts += [f"## {title}\n\n{markdown_table(rows)}" for title, rows in sections if len(rows) > 1]
    parts.append(f"<sub>{escape(_footer(report))}</sub>")
    return "\n\n".join(part for part in parts if part) + "\n"


def _quantization(report: Report, folder: Path) -> list[tuple[str, table.Rows]]:
    """The ladder, the arms, what calibration tried, how layers bear few bits."""
    ladders = [(f"Parity ladder{d.of}", ladder(d).rows) for d in attachments(report, folder, "ladder")]
    arms = [(f"Arms{d.of}", arm_table(d)) for d in attachments(report, folder, "arms")]
    others = detail_tables(report, folder, "calibration", "sensitivity")
    return ladders + arms + [(title[0].upper() + title[1:], rows) for title, rows in others]


def markdown_table(rows: table.Rows) -> str:
    """Rows, header first, as a Markdown table; numbers stand to the right."""
    header, *body = rows
    rule = ["---:" if right else ":---" for right in table.numeric_columns(rows)] if body else [":---"] * len(header)
    lines = [[escape(cell) for cell in header], rule, *([escape(cell) for cell in row] for row in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, no end of a table's cell."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda found: "\\" + found.group(0), line)


def _footer(report: Report) -> str:
    e = report.environment
    where = ", ".join(fact for fact in (e.host, e.cpu, e.gpu, e.os) if fact)
    created = report.created.isoformat(timespec="seconds")
    return f"run {report.run_id}, {created}, edgekd {report.edgekd_version}" + (f", on {where}" if where else "")
