"""Which build is shipped on a target: the fastest of those that hold the accuracy budget, if that was measured.

Precisions are tried from the widest on, and each has to be *shown* faster, with its interval, to take the place of a
wider one. 8 bits have to be faster than every float build that holds the budget, float16 and bfloat16 included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.pipeline.gates import GateSettings, judge, judge_build, rejects

Build = dict[str, Any]
_RANK = {"f32": 0, "bf16": 1, "f16": 2, "int8": 3}
_REFERENCE = "the teacher, built to be compared with"
_NOT_MEASURED = "built, not measured"
_WORDS = {
    "faster": "faster than",
    "slower": "slower than",
    "equivalent": "only as fast as",
    "inconclusive": "not shown to be faster than",
}


def choose(report: dict[str, Any], gates: Sequence[GateSettings] = ()) -> None:
    """Mark one build of each target as chosen and give the others their reasons.

    report["preferred"] then says by target and role which precision stands for it where several were built. Where
    several builds could be shipped and none was measured, none is chosen: nobody knows which is best.
    """
    report["preferred"] = {}
    for target in dict.fromkeys(build["target"] for build in report["builds"]):
        builds = [b for b in report["builds"] if b["target"] == target]
        reasons: dict[str, str] = {}
        able = _within_budget([b for b in builds if not _is_reference(b, report)], report, gates, reasons)
        measured = any(row.get("target", target) == target for row in report["comparisons"])
        best = _fastest(able, report, reasons) if len(able) < 2 or measured else None
        for build in builds:
            build["chosen"] = build is best
            reason = _REFERENCE if _is_reference(build, report) else reasons.get(_name(build), _NOT_MEASURED)
            build["rejected_because"] = None if build is best else reason


def _within_budget(
    builds: list[Build], report: dict[str, Any], gates: Sequence[GateSettings], reasons: dict[str, str]
) -> list[Build]:
    """Builds that break no accuracy budget, from the widest precision to the narrowest. float32 rounds nothing: a
    budget that it breaks is the network's, and no half precision answers for it."""
    able = []
    for build in sorted(builds, key=lambda b: _RANK[b["precision"]]):
        broken = None if build["precision"] == "f32" else _broken_budget(build, report, gates)
        if broken is None:
            able.append(build)
        else:
            reasons[_name(build)] = broken
    return able


def _broken_budget(build: Build, report: dict[str, Any], gates: Sequence[GateSettings]) -> str | None:
    """The accuracy budget that a build breaks, in words.

    What limits the quantized network limits half precision too: it would be shipped in its place.
    """
    for gate in gates:
        meant = gate.of in (build["model"], "quantized") and gate.target in (None, build["target"])
        if not meant or not gate.measure.startswith("metric"):
            continue
        if build["model"] != "quantized" and _network_breaks(gate, build, report):
            continue
        rows = [judge_build(gate, report, build)]
        if gate.of == build["model"] == "quantized":
            rows.append(judge(gate, report))
        for row in rows:
            if rejects(gate, row):
                return f"breaks the budget: {row['label']}, measured {row['value']:.4g} {row['unit'] or ''}".rstrip()
    return None


def _network_breaks(gate: GateSettings, build: Build, report: dict[str, Any]) -> bool:
    """Whether a float network fails a gate before anything is rounded: its f32 build, or else its score in PyTorch."""
    twins = (b for b in report["builds"] if (b["target"], b["model"]) == (build["target"], build["model"]))
    own = [b for b in twins if b["precision"] == "f32"] or [m for m in report["models"] if m["role"] == build["model"]]
    return any(rejects(gate, judge_build(gate, report, row)) for row in own)


def _fastest(able: list[Build], report: dict[str, Any], reasons: dict[str, str]) -> Build | None:
    """The build to ship of those that may be."""
    floats = [b for b in able if b["precision"] != "int8"]
    best = floats[0] if floats else None
    for build in floats[1:]:
        assert best is not None
        verdict, words = _verdict(build, best, report)
        if verdict == "faster":
            reasons[_name(best)] = _verdict(best, build, report)[1]
            best = build
        else:
            reasons[_name(build)] = words
    if best is not None:
        report["preferred"][best["target"], best["model"]] = best["precision"]
    for build in (b for b in able if b["precision"] == "int8"):
        against = [_verdict(build, twin, report) for twin in sorted(floats, key=lambda twin: twin is not best)]
        lost = [words for verdict, words in against if verdict != "faster"]
        if lost:
            reasons[_name(build)] = lost[0]
        else:
            reasons.update({_name(twin): _verdict(twin, build, report)[1] for twin in floats})
            best = build
    return best


def _is_reference(build: Build, report: Mapping[str, Any]) -> bool:
    return build["model"] == "teacher" and any(m["role"] == "student" for m in report["models"])


def _name(build: Build) -> str:
    return f"{build['model']}.{build['precision']}@{build['target']}"


def _verdict(build: Build, twin: Build, report: Mapping[str, Any]) -> tuple[str | None, str]:
    """Verdict on a build against another one of its target, and its words; no verdict when they were not compared."""
    names = [_name(build), _name(twin)]
    turned = {"faster": "slower", "slower": "faster"}
    for row in report["comparisons"]:
        if {row["a"], row["b"]} == set(names):
            ratio = row["ratio"] if row["a"] == names[0] else 1 / row["ratio"]
            verdict = row["verdict"] if row["a"] == names[0] else turned.get(row["verdict"], row["verdict"])
            return verdict, f"{_WORDS[verdict]} {twin['precision']}: {ratio:.2f} times its time"
    return None, f"not measured against {twin['precision']}"
