"""Latency, throughput and memory in two runs. These are not interleaved, which makes them hard to compare:

- A build's p50 is held against another build that is the same file in both runs, where there is one: both were
  measured interleaved with it, so that what the machine did falls out of the ratio of ratios.
- Else the intervals of both runs are put together (from the samples of the launches where both are at hand), and
  widened by what two runs of the same thing differ by.
- Under contention the wall clock says nothing: CPU time stands in for p50, and nothing for the other percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.report import changes
from edgekd.report.attachments import further_rows, launch_notes, launches
from edgekd.report.changes import Change, Options, Pair, Side
from edgekd.report.schema import Comparison, Latency, Report

if TYPE_CHECKING:
    from edgekd.bench.statistics import Estimate

Key = tuple[Any, ...]
Ratio = tuple[float, Pair | None]
Pairing = Callable[[dict[Key, Any], dict[Key, Any], Callable[[Any, Any], Iterable[Change]]], None]
_PERCENTILES = ("p50_ms", "p90_ms", "p99_ms")


@dataclass(frozen=True)
class Run:
    """A report and the folder in which its files lie."""

    report: Report
    folder: Path

    def machine(self, target: str) -> dict[str, Any]:
        """What a target was measured on, as far as the run tells: by its fingerprint, else by the environment."""
        rows = [row for row in self.report.latency if row.target == target]
        noted = launch_notes(rows[0], self.folder) if rows else []
        machine = noted[0].get("machine") if noted else None
        host = (rows[0].model_extra or {}).get("host") if rows else None
        if isinstance(machine, dict):
            return {"host": host, **{name: value for name, value in machine.items() if name != "python"}}
        if host is not None:
            return {"host": host, "power_mode": rows[0].power_mode}
        e = self.report.environment
        memory = round(e.memory_bytes / 2**30) if e.memory_bytes else None
        return {"host": host, "cpu": e.cpu, "cores": e.cores, "memory_gib": memory, "gpu": e.gpu}


def latency(base: Run, new: Run, options: Options, pair: Pairing) -> None:
    """Hand the rows of both runs to `pair`, with what makes changes of two that belong together."""

    def judged(target: str, found: Iterable[Change]) -> list[Change]:
        if options.across_machines or not _differences(base, new, target):
            return list(found)
        return [_not_judged(change) for change in found]

    pair(
        {_key(row): row for row in base.report.latency},
        {_key(row): row for row in new.report.latency},
        lambda a, b: judged(a.target, _Pair(base, new, a, b, options).rows()),
    )
    for section, measure, unit in (("throughput", "throughput_per_s", "/s"), ("load", "p99_ms", "ms")):
        pair(
            _section(base.report, section, measure),
            _section(new.report, section, measure),
            lambda a, b, measure=measure, unit=unit: judged(a["target"], _loaded(a, b, measure, unit, options)),  # type: ignore[misc]
        )


def machine_notes(base: Run, new: Run, options: Options) -> list[str]:
    """One line for each target that was measured on another machine."""
    notes = []
    for target in dict.fromkeys(row.target for row in base.report.latency):
        differences = _differences(base, new, target)
        if differences and any(row.target == target for row in new.report.latency):
            told = (
                "judged all the same" if options.across_machines else "latency is not judged (--across-machines does)"
            )
            notes.append(f"{target}: another machine ({', '.join(differences)}): {told}")
    return notes


def _differences(base: Run, new: Run, target: str) -> list[str]:
    before, after = base.machine(target), new.machine(target)
    return [
        f"{name} {before[name]} -> {after[name]}" for name in before if name in after and before[name] != after[name]
    ]


def _not_judged(change: Change) -> Change:
    return replace(change, verdict="not judged", note="another machine")


def _key(row: Latency) -> Key:
    threads = f"threads {row.threads}" if row.threads != 1 else None
    return (row.model, row.precision, "on", row.target, f"batch {row.batch}", threads)


@dataclass(frozen=True)
class _Pair:
    """One build, measured in both runs."""

    base_run: Run
    new_run: Run
    base: Latency
    new: Latency
    options: Options

    @property
    def what(self) -> str:
        return f"{self.base.model} {self.base.precision} on {self.base.target}, batch {self.base.batch}"

    def rows(self) -> Iterable[Change]:
        """p50, p90, p99, throughput one after the other, and peak memory."""
        if self.base == self.new:  # NEW took it from the store
            yield from self._once()
            return
        estimates = self._from_launches()
        for name in _PERCENTILES:
            if getattr(self.base, name) and getattr(self.new, name):
                held = self._p50_held(estimates) if name == "p50_ms" else None
                yield held or self._unless_disturbed(self._share("latency", name, "ms", self._ratio(name, estimates)))
        if "mean" in estimates and self.base.throughput_per_s and self.new.throughput_per_s:
            mean = estimates["mean"]
            turned = 1 / mean.value, (1 / mean.high, 1 / mean.low)
            yield self._unless_disturbed(self._share("throughput", "throughput_per_s", "/s", turned))
        if self.base.peak_rss_bytes and self.new.peak_rss_bytes:
            bytes_ = self.base.peak_rss_bytes, self.new.peak_rss_bytes
            yield changes.fact("memory", self.what, "peak memory", "B", *bytes_, self.options)

    def _once(self) -> Iterable[Change]:
        """The rows of one measurement that both runs tell."""
        kinds: dict[str, tuple[changes.Kind, str]] = dict.fromkeys(_PERCENTILES, ("latency", "ms"))
        kinds |= {"throughput_per_s": ("throughput", "/s"), "peak_rss_bytes": ("memory", "B")}
        for measure, (kind, unit) in kinds.items():
            if getattr(self.base, measure):
                name = "peak memory" if kind == "memory" else measure
                side = Side(getattr(self.base, measure), self.base.ci95.get(measure))
                about = (kind, self.what, name, unit)
                note = "the same measurement"
                yield changes.share(about, side, side, self.options, ratio=(1.0, (1.0, 1.0)), sd=0.0, note=note)

    def _p50_held(self, estimates: dict[str, Estimate]) -> Change | None:
        """The median by something steadier than the wall clock; None where there is nothing, or no need."""
        if (held := self._against_same_file()) is not None:
            ratio, note = held
            return self._share("latency", "p50_ms", "ms", ratio, sd=changes.INTERLEAVED_SD, note=note)
        cpu, on_cpu = estimates.get("cpu_p50"), self.base.device.upper().startswith("CPU")
        known = self.base.cpu_p50_ms and self.new.cpu_p50_ms
        if cpu is None or not known or not on_cpu or not self._contended() or self._slowed():
            return None
        note = "CPU time: other processes disturbed the wall clock"
        return self._share("latency", "cpu_p50_ms", "ms", (cpu.value, (cpu.low, cpu.high)), note=note)

    def _ratio(self, name: str, estimates: dict[str, Estimate]) -> Ratio:
        """From the samples of all launches; without them from the intervals that each run gives."""
        if (found := estimates.get(name.removesuffix("_ms"))) is not None:
            return found.value, (found.low, found.high)
        base, new = self.base.ci95.get(name), self.new.ci95.get(name)
        return changes.ratio(getattr(self.base, name), base, getattr(self.new, name), new)

    def _share(
        self, kind: changes.Kind, measure: str, unit: str, ratio: Ratio, sd: float | None = None, note: str = ""
    ) -> Change:
        base, new = (Side(getattr(row, measure), row.ci95.get(measure)) for row in (self.base, self.new))
        return changes.share((kind, self.what, measure, unit), base, new, self.options, ratio=ratio, sd=sd, note=note)

    def _unless_disturbed(self, change: Change) -> Change:
        why = "other processes disturbed it" if self._contended() else ""
        why = why or ("the machine slowed down" if self._slowed() else "")
        return replace(change, verdict="undecided", note=why) if why else change

    def _contended(self) -> bool:
        return bool(self.base.contended or self.new.contended)

    def _slowed(self) -> bool:
        return bool(self.base.throttled or self.new.throttled)

    def _from_launches(self) -> dict[str, Estimate]:
        before, after = launches(self.base, self.base_run.folder), launches(self.new, self.new_run.folder)
        if not before or not after:
            return {}
        from edgekd.bench.between import ratios

        return ratios([launch.samples for launch in before], [launch.samples for launch in after], seed=0)

    def _against_same_file(self) -> tuple[Ratio, str] | None:
        """The change against a build that is one file in both runs, and which one that is."""
        for other in self._same_files():
            ours, theirs = (f"{row.model}.{row.precision}@{row.target}" for row in (self.base, other))
            before, after = (_between(run.report, ours, theirs) for run in (self.base_run, self.new_run))
            if before is None or after is None:
                continue
            both = (before[0], after[0])
            by_cpu = any(c.clock == "cpu" for c in both) and all(c.cpu_ratio for c in both)
            first, second = _by_clock(*before, by_cpu=by_cpu), _by_clock(*after, by_cpu=by_cpu)
            ratio = changes.ratio(*first, *second)
            if ratio[1] is not None:
                by = ", by CPU time" if by_cpu else ""
                return ratio, f"held against {other.model} {other.precision}, the same file in both runs{by}"
        return None

    def _same_files(self) -> Iterable[Latency]:
        def files(run: Run) -> dict[tuple[str, str], str | None]:
            return {(b.model, b.precision): b.sha256 for b in run.report.builds if b.target == self.base.target}

        def rows(run: Run) -> dict[tuple[str, str], Latency]:
            like = self.base.target, self.base.batch, self.base.threads
            return {(r.model, r.precision): r for r in run.report.latency if (r.target, r.batch, r.threads) == like}

        before, after = files(self.base_run), files(self.new_run)
        old, new = rows(self.base_run), rows(self.new_run)
        for name, row in old.items():
            same = before.get(name) is not None and before.get(name) == after.get(name) and name in new
            if same and row is not self.base and _engine(row) == _engine(new[name]):
                yield row


def _engine(row: Latency) -> Any:
    return (row.model_extra or {}).get("engine")


def _between(report: Report, ours: str, theirs: str) -> tuple[Comparison, bool] | None:
    """The comparison of two builds, and whether it has to be turned round."""
    for c in report.comparisons:
        if {c.a, c.b} == {ours, theirs} and c.ratio > 0:
            return c, c.a == theirs
    return None


def _by_clock(c: Comparison, turn: bool, *, by_cpu: bool) -> Ratio:
    ratio, ci95 = (c.cpu_ratio, c.cpu_ci95) if by_cpu else (c.wall_ratio, c.wall_ci95)
    if not ratio:
        ratio, ci95 = c.ratio, c.ci95
    if not turn:
        return ratio, ci95
    return 1 / ratio, (1 / ci95[1], 1 / ci95[0]) if ci95 and ci95[0] > 0 else None


def _section(report: Report, name: str, measure: str) -> dict[Key, dict[str, Any]]:
    rows = [row for row in further_rows(report, name) if row.get("target") and (row.get(measure) or 0) > 0]
    return {
        (row.get("model"), row.get("precision"), "on", row["target"], f"batch {row.get('batch')}",
         f"streams {row.get('streams')}", row.get("rate_per_s") and f"at {row['rate_per_s']:g} per s"): row
        for row in rows
    }  # fmt: skip


def _loaded(base: dict[str, Any], new: dict[str, Any], measure: str, unit: str, options: Options) -> list[Change]:
    """Throughput of many at once, or the tail under a rate of requests."""
    rate = f" at {base['rate_per_s']:g} per s" if "rate_per_s" in base else ""
    what = f"{base.get('model')} {base.get('precision')} on {base['target']}, batch {base.get('batch')}"
    about: Any = ("latency" if unit == "ms" else "throughput", f"{what}, streams {base.get('streams')}{rate}")
    ends = [tuple(pair) if (pair := (row.get("ci95") or {}).get(measure)) else None for row in (base, new)]
    sides = [Side(row[measure], pair) for row, pair in zip((base, new), ends, strict=True)]
    ratio = changes.ratio(base[measure], ends[0], new[measure], ends[1])
    return [changes.share((*about, measure, unit), sides[0], sides[1], options, ratio=ratio)]
