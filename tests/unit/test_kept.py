"""The verdict of each target: 8 bits kept with gain and cost, or what was kept instead and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgekd.pipeline.choice import choose
from edgekd.pipeline.gates import GateSettings, broken, judge
from edgekd.report.kept import lost, verdicts
from edgekd.report.schema import Report
from edgekd.tasks.task import task_named

GATE = GateSettings(measure="metric_drop", of="quantized", against="student", target="t", max="1 pt", otherwise="float")


def metric(value: float) -> dict[str, Any]:
    low, high = value - 0.01, value + 0.01
    row = {"name": "accuracy", "value": value, "unit": "fraction", "split": "test", "n": 500, "ci95": [low, high]}
    return row | {
        "evaluated": True,
        "better": 1,
        "against": {"student": {"value": value - 0.9, "ci95": [value - 0.9] * 2}},
    }


def told(row: dict[str, Any]) -> dict[str, Any]:
    """What a report says of a metric."""
    return {key: value for key, value in row.items() if key not in ("evaluated", "better", "against")}


def report(int8: float, ratio: float, *, labelled: bool = True) -> Report:
    builds = []
    for model, precision, value, size in (("student", "f32", 0.9, 4_000_000), ("quantized", "int8", int8, 1_000_000)):
        difference = {**metric(value - 0.9), "ci95": [value - 0.904, value - 0.897]} if labelled else None
        build = {"target": "t", "runtime": "onnxruntime", "device": "CPU", "precision": precision, "model": model}
        builds.append({**build, "size_bytes": size, "metrics": [metric(value)], "difference": difference})
    pair = {"a": "quantized.int8@t", "b": "student.f32@t", "measure": "p50_ms", "ratio": ratio, "target": "t"}
    verdict = "faster" if ratio < 0.9 else "slower"
    document: dict[str, Any] = {
        "models": [{"role": "student", "name": "x", "metrics": [metric(0.9)]}],
        "builds": builds,
        "comparisons": [{**pair, "ci95": [ratio - 0.02, ratio + 0.02], "verdict": verdict}],
        "latency": [],
    }
    choose(document, [GATE])
    row = judge(GATE, document)
    assert not broken(GATE, row)
    document["gates"] = [row]
    del document["preferred"]
    for item in (*document["models"], *document["builds"]):
        item["metrics"] = [told(row) for row in item["metrics"]]
        if item.get("difference"):
            item["difference"] = told(item["difference"])
    about = {"edgekd_version": "0", "run_id": "r", "pipeline": "p", "status": "ok", "exit_code": 0, "seconds": 1.0}
    return Report.model_validate({**about, "created": "2026-01-01T00:00:00+00:00", "seed": 0, **document})


def test_8_bits_that_are_faster_and_right_are_kept() -> None:
    ((target, text),) = verdicts(report(0.898, 0.5))
    assert target == "t"
    assert text == (
        "INT8 kept: 2.0x [1.9, 2.1] as fast as FP32 and 4.0x as small (1 MB), "
        "-0.2 pt [-0.6, +0.1] accuracy against the float network (n 500)"
    )


def test_8_bits_that_cost_too_much_give_way_to_float_and_the_run_goes_on() -> None:
    ((_, text),) = verdicts(report(0.7, 0.5))
    assert text.startswith("FP32 kept, for INT8 breaks the budget: metric_drop of quantized against student on t")
    assert "INT8: -20.0 pt" in text


def test_8_bits_that_are_slower_give_way_to_float() -> None:
    ((_, text),) = verdicts(report(0.9, 1.3))
    assert text.startswith("FP32 kept, for INT8 is slower than f32: 1.30 times its time")


def test_without_labels_the_verdict_is_of_agreement() -> None:
    ((_, text),) = verdicts(report(0.898, 0.5, labelled=False))
    assert text.endswith("accuracy 0.898 [0.888, 0.908] (n 500)")


def test_otherwise_is_for_accuracy_of_the_quantized_network() -> None:
    with pytest.raises(ValueError, match="otherwise: float is for accuracy"):
        GateSettings(measure="size", of="quantized", max="1 MB", otherwise="float")


def test_the_difference_in_pairs_has_an_interval_that_knows_the_pairs() -> None:
    target = torch.arange(1000) % 2
    right = torch.nn.functional.one_hot(target, 2).float()
    one, other = right.clone(), right.clone()
    one[:30] = one[:30].flip(1)  # wrong on 30
    other[20:50] = other[20:50].flip(1)  # wrong on 30 others, 10 of them the same
    difference = task_named("classification").difference
    assert difference is not None
    same, apart = difference(right, right, target), difference(one, right, target)
    assert (same.value, same.n) == (0.0, 1000)
    assert same.ci95[0] < 0 < same.ci95[1]
    assert same.ci95[1] < 0.005
    assert apart.value == pytest.approx(-0.03)
    assert apart.ci95[0] < -0.03 < apart.ci95[1] < -0.01
    both = difference(one, other, target)
    assert both.value == 0.0
    # Agresti and Min (2005) by hand: b = c = 20.5, n + 2 = 1002.
    assert both.ci95[1] == pytest.approx(1.959964 * (41**0.5) / 1002)


def test_a_budget_that_chose_the_float_build_says_so_and_is_no_failure_in_junit() -> None:
    from xml.etree import ElementTree

    from edgekd.report.junit import junit
    from edgekd.report.verdict import sentences

    found = report(0.7, 0.5)
    assert sentences(found)[0] == "p: 0 of 1 budgets held; where 8 bits broke one, a float build is chosen."
    (case,) = [c for c in ElementTree.fromstring(junit(found)).iter("testcase") if c.get("classname") == "p.gate"]
    (skipped,) = case
    assert skipped.tag == "skipped"
    assert "8 bits are not chosen" in str(skipped.get("message"))


def test_a_gain_of_a_few_percent_can_be_read() -> None:
    ((_, text),) = verdicts(report(0.898, 0.89))
    assert "INT8 kept: 1.12x [1.10, 1.15] as fast" in text


def test_the_verdict_says_what_a_student_lost_to_its_teacher_where_float_is_kept() -> None:
    found = report(0.7, 0.5)
    teacher = found.models[0].model_copy(update={"role": "teacher"})
    ((_, text),) = verdicts(found.model_copy(update={"models": [teacher, *found.models]}))
    assert "; against the teacher: not measured against a float build, +0.0 pt [-0.4, +0.3] accuracy (n 500)" in text
    assert "; INT8: -20.0 pt" in text


def distilled(accuracy: float) -> Report:
    """As `report`, its student beside a teacher of 0.9 that takes four times as long, the differences against that."""
    found = report(0.9, 0.5)
    teacher = found.models[0].model_copy(update={"role": "teacher"})
    reference = found.builds[0].model_copy(update={"model": "teacher", "size_bytes": 8_000_000, "chosen": False})
    told = {"value": accuracy - 0.9, "ci95": (accuracy - 0.91, accuracy - 0.89)}
    builds = [
        build.model_copy(update={"difference": build.difference and build.difference.model_copy(update=told)})
        for build in found.builds
    ]
    row = found.comparisons[0].model_copy(update={"b": "teacher.f32@t", "ratio": 0.25, "ci95": (0.2, 0.3)})
    more = {
        "models": [teacher, *found.models],
        "builds": [reference, *builds],
        "comparisons": [*found.comparisons, row],
    }
    return found.model_copy(update=more)


def test_a_student_is_judged_against_its_teacher_and_8_bits_against_their_own_float() -> None:
    ((_, text),) = verdicts(distilled(0.24))
    assert text == (
        "INT8 kept: against the teacher: 4.0x [3.3, 5.0] as fast and 8.0x as small (1 MB), "
        "-66.0 pt [-67.0, -65.0] accuracy (n 500); "
        "INT8 against its own float: 2.0x [1.9, 2.1] as fast as FP32 and 4.0x as small (1 MB), +0.0 pt [+0.0, +0.0]"
    )


def test_a_student_that_lost_more_than_the_budget_is_told_of() -> None:
    (line,) = lost(distilled(0.24), 0.01)
    assert line.startswith(
        "t: the student loses 66.0 pt accuracy to its teacher (n 500), more than 1 pt: train it longer"
    )
    assert lost(distilled(0.895), 0.01) == lost(report(0.5, 0.5), 0.01) == []
