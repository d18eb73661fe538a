"""junit.xml: one test case per stage and per budget, so that a CI server shows them as it shows tests."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from edgekd.report import words
from edgekd.report.schema import Gate, Report, Stage
from edgekd.report.verdict import broken

# What XML 1.0 cannot hold, not even as a character reference.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """The report as one JUnit test suite. A failed stage is an error, a broken budget a failure."""
    suite = ET.Element("testsuite")
    properties = ET.SubElement(suite, "properties")
    for name, value in (("run_id", report.run_id), ("edgekd_version", report.edgekd_version)):
        ET.SubElement(properties, "property", name=name, value=_legal(value))
    for stage in report.stages:
        _add_stage(suite, report, stage)
    failing = broken(report)
    for gate in report.gates:
        _add_gate(suite, report, gate, fails=gate in failing)
    if report.status != "ok" and suite.find(".//error") is None and suite.find(".//failure") is None:
        message = report.error.message if report.error else f"the run ended with exit code {report.exit_code}"
        _mark(_case(suite, report, "run", "run", report.seconds), "error", message, _text(report))
    for name, value in _totals(suite, report).items():
        suite.set(name, value)
    ET.SubElement(suite, "system-out")
    ET.SubElement(suite, "system-err")
    ET.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _totals(suite: ET.Element, report: Report) -> dict[str, str]:
    return {
        "name": _legal(f"edgekd {report.pipeline}"),
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(suite.findall("testcase/failure"))),
        "errors": str(len(suite.findall("testcase/error"))),
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "time": f"{report.seconds:.3f}",
        "timestamp": report.created.strftime("%Y-%m-%dT%H:%M:%S"),  # the schema has no room for a time zone
        "hostname": _legal(report.environment.host or "localhost"),
    }


def _add_stage(suite: ET.Element, report: Report, stage: Stage) -> None:
    case = _case(suite, report, "stage", stage.name, stage.seconds)
    if stage.state == "failed":
        ours = report.error is not None and report.error.stage in (None, stage.name)
        message = report.error.message if report.error and ours else stage.why or "the stage failed"
        _mark(case, "error", message, _text(report) if ours else "")
    elif stage.state == "skipped":
        ET.SubElement(case, "skipped", message=_legal(stage.why or "skipped"))


def _add_gate(suite: ET.Element, report: Report, gate: Gate, *, fails: bool) -> None:
    case = _case(suite, report, "gate", words.gate_label(gate), 0.0)
    message = f"{gate.verdict}: {words.gate_value(gate)}, limit {words.gate_limit(gate)}"
    if fails:
        _mark(case, "failure", message, gate.message or "")
    elif gate.verdict != "passed":  # undecided, or broken by a build that is then not chosen
        ET.SubElement(case, "skipped", message=_legal(": ".join(filter(None, (message, gate.message)))))


def _case(suite: ET.Element, report: Report, kind: str, name: str, seconds: float) -> ET.Element:
    group = f"{report.pipeline}.{kind}"
    return ET.SubElement(suite, "testcase", classname=_legal(group), name=_legal(name), time=f"{seconds:.3f}")


def _mark(case: ET.Element, outcome: str, message: str, text: str) -> None:
    ET.SubElement(case, outcome, type=outcome, message=_legal(message)).text = _legal(text)


def _text(report: Report) -> str:
    if report.error is None:
        return ""
    lines = [report.error.message, report.error.hint and f"To mend it: {report.error.hint}"]
    return "\n".join(line for line in [*lines, report.error.log and f"Log: {report.error.log}"] if line)


def _legal(text: str) -> str:
    return _ILLEGAL.sub("", text)
