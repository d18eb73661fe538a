"""model_card.md: what was built, for whoever gets it without the run: data, training, numbers, limits, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekd.report import table, words
from edgekd.report.markdown import escape, markdown_table
from edgekd.report.schema import Build, Report


@dataclass(frozen=True)
class CardFacts:
    """What a card tells beside the report.

    `stages`: settings of each stage that was finished, as the pipeline file sets them. `lineage`: for the main file of
    each build, it and all that it was made from, with sha256.
    """

    tasks: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lineage: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


def model_card(report: Report, facts: CardFacts) -> str:
    """The card as Markdown. What was not measured is said to be so, never left out in silence."""
    chosen = [build for build in report.builds if build.chosen]
    parts = [
        f"# {escape(report.pipeline)}",
        _what(report, facts, chosen),
        f"## Data\n\n{_data(report)}",
        f"## Training\n\n{_training(report, facts)}",
        f"## Metrics\n\n{_metrics(report)}",
        f"## Latency\n\n{_latency(report)}",
        f"## Limits\n\n{_limits(report, chosen)}",
        f"## Lineage\n\n{_lineage(report, facts, chosen)}",
        f"## Licence\n\n{_licence(report)}",
    ]
    return "\n\n".join(parts) + "\n"


def _what(report: Report, facts: CardFacts, chosen: Sequence[Build]) -> str:
    tasks = ", ".join(f"{task} ({output})" for output, task in facts.tasks.items())
    state = {"ok": "The run ended well.", "gate_failed": "**A budget was broken.**", "failed": "**The run failed.**"}
    lines = [f"Task: {escape(tasks)}. {state[report.status]}"]
    lines += [
        f"- For `{build.target}` ({build.runtime}, {escape(build.device)}): `{build.path}`, {build.model} network in "
        f"{build.precision}, {words.size(build.size_bytes)}"
        for build in chosen
    ]
    if not chosen:
        lines.append("- No build was chosen." if report.builds else "- Nothing was built for a device.")
    shown = chosen[:1] or report.builds[:1]
    for build in shown:
        for kind, tensors in (("Input", build.inputs), ("Output", build.outputs)):
            lines += [f"- {kind} `{t.name}`: {t.dtype}, {list(t.shape)} (-1: the batch)" for t in tensors]
    return f"{lines[0]}\n\n" + "\n".join(lines[1:])


def _data(report: Report) -> str:
    if report.data is None:
        return "The data was never opened."
    n = report.data.n
    sizes = [("train", n.train), ("validation", n.validation), ("test", n.test)]
    counted = ", ".join(f"{name} {size}" for name, size in sizes if size is not None) or "not counted"
    return f"Samples: {counted}. Fingerprint: `{report.data.fingerprint}`."


def _training(report: Report, facts: CardFacts) -> str:
    lines = [f"Seed {report.seed}; edgekd {report.edgekd_version}; " + _commit(report)]
    for name, settings in facts.stages.items():
        told = ", ".join(f"{key}: {json.dumps(value)}" for key, value in settings.items()) or "defaults"
        lines.append(f"- `{name}`: {escape(told)}")
    return f"{lines[0]}\n\n" + "\n".join(lines[1:])


def _commit(report: Report) -> str:
    if report.git is None:
        return "no git repository."
    return f"git commit `{report.git.commit}`" + (
        ", with changes that were not committed." if report.git.dirty else "."
    )


def _metrics(report: Report) -> str:
    rows = [["network or build", "metric", "value and 95% interval", "split", "n"]]
    named = [(model.role, model.metrics) for model in report.models]
    named += [(f"{b.model} {b.precision} on {b.target}", b.metrics) for b in report.builds]
    for name, scored in named:
        tested = [metric for metric in scored if metric.split == "test"]
        metrics = tested or scored  # validation has helped to choose, and a network from elsewhere may have learned it
        rows += [[name, m.name, words.metric_value(m), m.split or "", str(m.n or "")] for m in metrics]
    return markdown_table(rows) if len(rows) > 1 else "Nothing was scored."


def _latency(report: Report) -> str:
    rows = table.latency_table(report)
    return markdown_table(rows) if len(rows) > 1 else "No latency was measured."


def _limits(report: Report, chosen: Sequence[Build]) -> str:
    e, lines = report.environment, []
    if any(metric.split == "test" for model in report.models for metric in model.metrics):
        lines.append("Metrics hold for data like the test split; nothing was tried on other data.")
    else:
        lines.append("Nothing was scored on a test split: no figure here speaks of new data.")
    if report.latency:
        lines.append(f"Latency holds for the device it was measured on ({escape(str(e.cpu))} where none is named).")
    else:
        lines.append("How fast it runs is not known.")
    for row in report.latency:
        if row.contended or row.throttled or row.few_launches or row.steady is False:
            told = {"contended": row.contended, "throttled": row.throttled, "too few launches": row.few_launches}
            words_ = [word for word, on in told.items() if on]
            words_ += [] if row.steady is not False else ["not steady"]
            lines.append(f"Latency of {row.model} {row.precision} on {row.target}: {', '.join(words_)}.")
    for build in chosen:
        for name, value in build.parity.agreement.items() if build.parity else ():
            assert build.parity is not None
            reference = escape(build.parity.reference)
            lines.append(
                f"On {build.target} {value:.2%} of {build.parity.n} answers ({name}) are those of {reference}."
            )
    lines += [f"{stage.name}: {escape(text)}" for stage in report.stages for text in stage.warnings]
    unmet = [gate for gate in report.gates if gate.verdict != "passed"]
    lines += [f"Budget {gate.verdict}: {escape(words.gate_label(gate))}: {words.gate_value(gate)}" for gate in unmet]
    return "\n".join(f"- {line}" for line in lines)


def _lineage(report: Report, facts: CardFacts, chosen: Sequence[Build]) -> str:
    shown = [build.path for build in chosen if build.path is not None] or list(facts.lineage)
    lines = []
    for path in shown:
        lines += [f"- `{name}` (sha256 `{sha256}`)" for name, sha256 in facts.lineage[path]]
    keys = [
        f"- stage `{stage.name}`: key `{stage.key}`" for stage in report.stages if stage.key and stage.state != "failed"
    ]
    return "\n".join([*dict.fromkeys(lines), *keys, "", "`manifest.json` has the rest; `edgekd verify` checks it."])


def _licence(report: Report) -> str:
    given = report.data.licence if report.data is not None else None
    data = f"Licence of the data: {escape(given)}." if given else "The pipeline file names no licence of the data."
    return f"{data} The licence of the networks is for whoever ships them to state."
