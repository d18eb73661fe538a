"""What changed from one run to another, and which of it is a regression: row by row, with intervals.

Two runs are not interleaved, so their machine is not the same even where it is: see `latency`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError, GateError
from edgekd.report import changes, words
from edgekd.report.changes import Change, Options, Pair
from edgekd.report.latency_changes import Run, latency, machine_notes
from edgekd.report.schema import Build, Metric, Report

_SMALLER_IS_BETTER = {"mae", "difference"}
_LEVELS = ("regression", "improvement", "undecided", "same", "not judged")
Item = TypeVar("Item")
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """Two runs side by side.

    `missing`: targets that only the base has, and that nobody allowed to go; `missing_builds`: the same of precisions
    of targets that both have, as `TARGET.PRECISION`; `incomparable`: networks and builds all of whose scores are of
    other samples than before.
    """

    rows: list[Change]
    notes: list[str] = field(default_factory=list)
    only_base: list[str] = field(default_factory=list)
    only_new: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    missing_builds: list[str] = field(default_factory=list)
    incomparable: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> changes.Verdict:
        """The one of all rows that matters most; a target or a build that is missing is a regression."""
        if self.gone():
            return "regression"
        return min((row.verdict for row in self.rows), key=_LEVELS.index, default="not judged")

    @property
    def exit_code(self) -> int:
        """5 on a regression, 2 where scores were to be compared and are of other samples, else 0."""
        if self.verdict == "regression":
            return GateError.exit_code
        return ConfigError.exit_code if self.incomparable else 0

    def regressions(self) -> list[Change]:
        """The rows that got worse."""
        return [row for row in self.rows if row.verdict == "regression"]

    def gone(self) -> dict[str, str]:
        """What is missing in words, by the name that `--allow-missing` takes."""
        return {name: f"target {name}" for name in self.missing} | {
            name: f"build {name}" for name in self.missing_builds
        }


def compare(base: Report, base_folder: Path, new: Report, new_folder: Path, options: Options) -> Outcome:
    """Every measure that both runs have.

    Args:
        base_folder: where the files that the report points to lie (samples of latency, above all); they may be missing.

    Raises:
        ConfigError: the two have no measure in common, or the base has nothing of a name that may be missing.
    """
    _check_allowed(base, options)
    before, after = Run(base, base_folder), Run(new, new_folder)
    found = Outcome([])
    other = _other_samples(base, new)
    _pair(found, _metrics(base), _metrics(new), lambda a, b: [_metric(a, b, options, other(a.metric.split))])
    _pair(found, _builds(base), _builds(new), lambda a, b: _build(a, b, options))
    latency(before, after, options, lambda a, b, judge: _pair(found, a, b, judge))
    if not found.rows:
        raise ConfigError(
            "the two reports have nothing in common to compare",
            hint="give two runs of one pipeline that got as far as a network, a build or a measurement",
        )
    _missing(found, base, new, options)
    found.incomparable.extend(_incomparable(found.rows))
    found.notes.extend([*_notes(base, new), *machine_notes(before, after, options)])
    return found


def _built(report: Report) -> list[tuple[str, str]]:
    """Targets that something was built for or measured on, each with its precisions."""
    built = [(build.target, build.precision) for build in report.builds]
    return list(dict.fromkeys([*built, *((row.target, row.precision) for row in report.latency)]))


def _check_allowed(base: Report, options: Options) -> None:
    known = {name for target, precision in _built(base) for name in (target, f"{target}.{precision}")}
    for name in options.may_be_missing:
        if name not in known:
            raise ConfigError(f"--allow-missing {name}: BASE has no such target", hint=did_you_mean(name, known))


def _missing(found: Outcome, base: Report, new: Report, options: Options) -> None:
    """Note the targets, and of targets that are still there the precisions, that only the base has."""
    after = _built(new)
    there = {target for target, _ in after}
    for target, precision in _built(base):
        build = f"{target}.{precision}"
        if (target, precision) in after or {target, build} & set(options.may_be_missing):
            continue
        if target in there:
            found.missing_builds.append(build)
        elif target not in found.missing:
            found.missing.append(target)


def _other_samples(base: Report, new: Report) -> Callable[[str | None], bool]:
    """Whether the scores on a split are of other samples: by its fingerprint, of reports without it by that of all."""

    def other(split: str | None) -> bool:
        before, after = base.data, new.data
        if before is None or after is None:
            return False
        known = [data.split_fingerprints.get(split or "") for data in (before, after)]
        return known[0] != known[1] if all(known) else before.fingerprint != after.fingerprint

    return other


def _incomparable(rows: Sequence[Change]) -> list[str]:
    """Networks and builds that have scores in both runs, and none of them on the same samples."""
    judged: dict[str, bool] = {}
    for row in rows:
        if row.kind == "metric":
            what = row.what.partition(", ")[0]
            judged[what] = judged.get(what, False) or row.verdict != "not judged"
    return [what for what, is_judged in judged.items() if not is_judged]


def _pair(
    found: Outcome, base: dict[Key, Item], new: dict[Key, Item], judge: Callable[[Item, Item], Iterable[Change]]
) -> None:
    for key, item in base.items():
        if key in new:
            found.rows.extend(judge(item, new[key]))
    found.only_base.extend(_name(key) for key in base if key not in new)
    found.only_new.extend(_name(key) for key in new if key not in base)


def _name(key: Key) -> str:
    return " ".join(str(part) for part in key if part not in (None, ""))


@dataclass(frozen=True)
class _Scored:
    """A metric of something, on a split."""

    what: str
    metric: Metric


def _metrics(report: Report) -> dict[Key, _Scored]:
    scored = [(f"{m.role} in PyTorch", m.metrics) for m in report.models]
    scored += [(_of(build), build.metrics) for build in report.builds]
    return {
        (what, metric.name, metric.split): _Scored(", ".join(filter(None, (what, metric.split))), metric)
        for what, metrics in scored
        for metric in metrics
    }  # fmt: skip


def _metric(base: _Scored, new: _Scored, options: Options, other: bool) -> Change:
    """A metric's difference. The same score on the same samples is no change, however few they are.

    `other`: the samples are others; the difference says nothing of the networks then.
    """
    a, b = base.metric, new.metric
    ends = changes.wilson(a), changes.wilson(b)
    value, ci95 = changes.difference(a.value, ends[0], b.value, ends[1])
    judged = changes.verdict(
        value, ci95, options.thresholds["metric"], more_is_worse=a.name.rsplit(".", 1)[-1] in _SMALLER_IS_BETTER
    )
    note = f"n {a.n}" if a.n == b.n else f"n {a.n} and {b.n}"
    if other and not options.across_data:
        judged, note = "not judged", f"other samples, {note}"
    elif not other and a.n == b.n and a.value == b.value:
        judged = "same"
    elif ci95 is None:
        judged, note = ("same" if value == 0 else "undecided"), "no interval"
    return Change("metric", base.what, a.name, a.unit, a.value, b.value, *ends, value, ci95, judged, note)


def _builds(report: Report) -> dict[Key, Build]:
    return {(_of(build),): build for build in report.builds}


def _of(build: Build) -> str:
    return f"{build.model} {build.precision} on {build.target}"


def _build(base: Build, new: Build, options: Options) -> list[Change]:
    """Size on disk, and the share of layers that the engine runs in the precision that was asked for."""
    rows = []
    if base.size_bytes and new.size_bytes:
        rows.append(changes.fact("size", _of(base), "size", "B", base.size_bytes, new.size_bytes, options))
    if base.executed_precision and new.executed_precision:
        shares = _as_asked(base), _as_asked(new)
        layers = " -> ".join(dict.fromkeys(words.layers(build.executed_precision) for build in (base, new)))
        row = changes.fact("precision", _of(base), "layers as asked", "fraction", *shares, options)
        rows.append(replace(row, note=layers))
    return rows


def _as_asked(build: Build) -> float:
    asked = {"int8", "uint8"} if build.precision == "int8" else {build.precision}
    count = sum(number for name, number in build.executed_precision.items() if name in asked)
    return count / sum(build.executed_precision.values())


def _notes(base: Report, new: Report) -> list[str]:
    notes = []
    if base.pipeline != new.pipeline:
        notes.append(f"two pipelines: {base.pipeline} and {new.pipeline}")
    for side, report in (("base", base), ("new", new)):
        if report.status == "failed":
            notes.append(f"the {side} run failed: {report.error.message if report.error else 'no reason was recorded'}")
    if base.data and new.data and base.data.fingerprint != new.data.fingerprint:
        before, after = base.data.split_fingerprints, new.data.split_fingerprints
        moved = [name for name in before if name in after and before[name] != after[name]]
        notes.append("the data differ" + (f": other samples in {', '.join(moved)}" if moved else ""))
    was, now = base.environment.packages, new.environment.packages
    versions = [f"{name} {was[name]} -> {now[name]}" for name in was if now.get(name, was[name]) != was[name]]
    return [*notes, *([f"other versions: {', '.join(versions)}"] if versions else [])]


def interval_text(change: Change) -> str:
    """A change with its interval as a reader wants it: `+2.1% [+0.4, +3.9]`, of shares in points."""
    scale, unit = (100.0, "%") if change.relative else (100.0, " pt") if change.unit == "fraction" else (1.0, "")
    value, *ends = (_signed(scale * v) for v in (change.change, *(change.ci95 or ())))
    return f"{value}{unit} [{', '.join(ends)}]" if ends else f"{value}{unit}"


def _signed(value: float) -> str:
    return f"{value:+.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def value_text(value: float, ci95: Pair | None, change: Change) -> str:
    """One side of a change with its interval."""
    if change.unit == "B":
        return words.size(round(value))
    return words.with_unit(words.number_between(value, ci95), change.unit)


def table(rows: Sequence[Change]) -> list[list[str]]:
    """Rows for `table.align` or Markdown, header first."""
    header = ["what", "measure", "base", "new", "change", "verdict", "note"]
    body = [
        [
            row.what,
            row.measure,
            value_text(row.base, row.base_ci95, row),
            value_text(row.new, row.new_ci95, row),
            interval_text(row),
            row.verdict,
            row.note,
        ]
        for row in rows
    ]
    return [header, *([words.cell(cell) for cell in row] for row in body)]


def lines(found: Outcome) -> list[str]:
    """How many rows came out how, what only one run has, and what else a reader must know."""
    counts = {level: sum(row.verdict == level for row in found.rows) for level in _LEVELS}
    told = ", ".join(f"{number} {level}" for level, number in counts.items() if number)
    only = [("base", found.only_base), ("new", found.only_new)]
    return [
        f"{len(found.rows)} measures: {told}",
        *(f"{what} is missing in new: a regression (--allow-missing {name})" for name, what in found.gone().items()),
        *(f"{what}: scores are of other samples and cannot be compared" for what in found.incomparable),
        *(f"only in {side}: {name}" for side, names in only for name in names),
        *(f"note: {note}" for note in found.notes),
    ]


def markdown(found: Outcome) -> str:
    """For a pull request: the verdict, the rows that changed, and all others folded away."""
    from edgekd.report.markdown import escape, markdown_table

    worse = len(found.regressions()) + len(found.gone())
    fine = "❌ scores of other samples: not comparable" if found.incomparable else "✅ no regression"
    title = f"❌ {worse} regression{'s' if worse > 1 else ''}" if worse else fine
    told = [row for row in found.rows if row.verdict in ("regression", "improvement")]
    rest = [row for row in found.rows if row not in told]
    parts = [f"## {title}", "\n".join(f"- {escape(line)}" for line in lines(found))]
    if told:
        parts.append(markdown_table(table(sorted(told, key=lambda row: _LEVELS.index(row.verdict)))))
    if rest:
        parts.append(f"<details><summary>{len(rest)} measures without a change that counts</summary>")
        parts += [markdown_table(table(rest)), "</details>"]
    return "\n\n".join(parts)
