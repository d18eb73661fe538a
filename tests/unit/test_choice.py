"""Which build is shipped on a target: never a slower one, never one that breaks an accuracy budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from edgekd.pipeline.choice import choose
from edgekd.pipeline.gates import GateSettings, judge
from edgekd.stages.compile import orders
from edgekd.stages.settings import TargetSettings

BUDGET = GateSettings(measure="metric_drop", of="quantized", against="student", max="1 pt")
Found = dict[str, tuple[bool, str | None]]


def metric(value: float, half: float = 0.0) -> list[dict[str, Any]]:
    """A score, and by how much it is another than those of the teacher and the student, give or take `half`."""
    apart = {role: value - other for role, other in (("teacher", 0.95), ("student", 0.9))}
    against = {role: {"value": by, "ci95": [by - half, by + half]} for role, by in apart.items()}
    row = {"name": "accuracy", "value": value, "ci95": None, "evaluated": True, "better": 1}
    return [{**row, "against": against}]


def report_of(precisions: tuple[str, ...], times: dict[str, float], drops: dict[str, float]) -> dict[str, Any]:
    """Builds of one target, all pairs of which were compared if `times` are given; `drops` in points."""
    builds = [{"target": "ov", "model": "teacher", "precision": "f32", "metrics": metric(0.95)}]
    for precision in precisions:
        model = "quantized" if precision == "int8" else "student"
        value = 0.9 - drops.get(precision, 0.0) / 100
        builds.append({"target": "ov", "model": model, "precision": precision, "metrics": metric(value)})
    names = {b["precision"]: f"{b['model']}.{b['precision']}@ov" for b in builds[1:]}
    comparisons = []
    for index, a in enumerate(precisions):
        for b in precisions[index + 1 :] if times else ():
            ratio = times[a] / times[b]
            verdict = "inconclusive" if 0.95 < ratio < 1.05 else "faster" if ratio < 1 else "slower"
            row = {"a": names[a], "b": names[b], "target": "ov", "ratio": ratio, "verdict": verdict}
            comparisons.append(row)
    models = [{"role": r, "metrics": metric(0.95 if r == "teacher" else 0.9)} for r in ("teacher", "student")]
    models.append({"role": "quantized", "metrics": metric(0.9 - drops.get("network", 0.0) / 100)})
    latency = [{"target": "ov", "model": b["model"], "precision": b["precision"], "ci95": {}} for b in builds[:0:-1]]
    for row in latency:
        row["p50_ms"] = times.get(row["precision"])
    return {"builds": builds, "comparisons": comparisons, "models": models, "latency": latency}


def chosen(
    precisions: tuple[str, ...],
    times: dict[str, float] | None = None,
    drops: dict[str, float] | None = None,
    gates: tuple[GateSettings, ...] = (BUDGET,),
) -> Found:
    report = report_of(precisions, times or {}, drops or {})
    choose(report, gates)
    assert report["builds"][0]["rejected_because"] == "the teacher, built to be compared with"
    return {b["precision"]: (b["chosen"], b["rejected_because"]) for b in report["builds"][1:]}


@pytest.mark.parametrize("order", [("f32", "int8"), ("int8", "f32")])
def test_int8_that_was_measured_faster_is_shipped(order: tuple[str, ...]) -> None:
    found = chosen(order, {"f32": 2.0, "int8": 1.0})
    assert found == {"int8": (True, None), "f32": (False, "slower than int8: 2.00 times its time")}


@pytest.mark.parametrize(
    ("time", "words"),
    [(1.3, "slower than f32: 1.30 times its time"), (0.98, "not shown to be faster than f32: 0.98 times its time")],
)
def test_int8_that_was_not_measured_faster_is_not_shipped(time: float, words: str) -> None:
    assert chosen(("f32", "int8"), {"f32": 1.0, "int8": time}) == {"f32": (True, None), "int8": (False, words)}


def test_int8_has_to_beat_the_fastest_float_build_and_not_only_f32() -> None:
    found = chosen(("f32", "f16", "int8"), {"f32": 3.0, "f16": 1.0, "int8": 1.5})
    assert found["f16"] == (True, None)
    assert found["f32"] == (False, "slower than f16: 3.00 times its time")
    assert found["int8"] == (False, "slower than f16: 1.50 times its time")


def test_int8_has_to_beat_a_float_build_that_was_only_not_shown_faster_itself() -> None:
    """bf16 is a little faster than f32 and int8 a little faster than bf16: only int8 against f32 is clear."""
    found = chosen(("f32", "bf16", "int8"), {"f32": 1.0, "bf16": 0.96, "int8": 0.93})
    assert found["f32"] == (True, None)
    assert found["int8"] == (False, "not shown to be faster than bf16: 0.97 times its time")


def test_the_widest_precision_stays_where_none_was_shown_faster() -> None:
    found = chosen(("bf16", "f16", "f32"), {"f32": 1.0, "bf16": 0.99, "f16": 0.98})
    assert found["f32"] == (True, None)
    assert found["f16"] == (False, "not shown to be faster than f32: 0.98 times its time")


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_half_precision_that_breaks_the_accuracy_budget_is_no_baseline(half: str) -> None:
    found = chosen(("f32", half, "int8"), {"f32": 3.0, half: 1.0, "int8": 2.0}, {half: 1.5})
    label = "metric_drop of quantized against student at most 1 pt"
    assert found[half] == (False, f"breaks the budget: {label}, measured 1.5 pt")
    assert found["int8"] == (True, None)
    assert found["f32"] == (False, "slower than int8: 1.50 times its time")


@pytest.mark.parametrize("where", ["int8", "network"])
def test_int8_that_breaks_its_accuracy_budget_is_not_shipped_however_fast(where: str) -> None:
    """On its target, or as the network in PyTorch."""
    found = chosen(("f32", "int8"), {"f32": 2.0, "int8": 1.0}, {where: 2.0})
    assert found["f32"] == (True, None)
    assert str(found["int8"][1]).endswith("measured 2 pt")
    assert chosen(("f32", "int8"), {"f32": 2.0, "int8": 1.0}, {where: 0.5})["int8"][0]


def test_a_budget_of_another_target_is_none_here() -> None:
    gate = BUDGET.model_copy(update={"target": "ort"})
    assert chosen(("f32", "int8"), {"f32": 2.0, "int8": 1.0}, {"int8": 9.0}, (gate,))["int8"][0]
    gate = BUDGET.model_copy(update={"target": "ov"})
    assert not chosen(("f32", "int8"), {"f32": 2.0, "int8": 1.0}, {"int8": 9.0}, (gate,))["int8"][0]


def test_the_students_own_budget_binds_its_half_precision_and_not_f32() -> None:
    gate = GateSettings(measure="metric_drop", of="student", against="teacher", max="6 pt")
    found = chosen(("f32", "bf16"), {"f32": 2.0, "bf16": 1.0}, {"bf16": 1.5}, (gate,))
    assert found["f32"] == (True, None)
    assert str(found["bf16"][1]).startswith("breaks the budget: metric_drop of student")


@pytest.mark.parametrize("of", ["student", "quantized"])
@pytest.mark.parametrize("own", [("f32", "f16"), ("f16",)])
def test_a_budget_that_the_float_network_breaks_is_not_held_against_its_half_precision(
    of: str, own: tuple[str, ...]
) -> None:
    """The network is 5 points below its teacher: by its f32 build, or where there is none by its score in PyTorch."""
    gate = GateSettings.model_validate({"measure": "metric_drop", "of": of, "against": "teacher", "max": "1 pt"})
    found = chosen(own, {"f32": 2.0, "f16": 1.0}, {}, (gate,))
    assert found["f16"] == (True, None)
    assert found.get("f32") in (None, (False, "slower than f16: 2.00 times its time"))


def test_nothing_is_shipped_where_every_build_breaks_the_budget() -> None:
    found = chosen(("bf16", "int8"), {"bf16": 2.0, "int8": 1.0}, {"bf16": 2.0, "int8": 2.0})
    assert not any(ships for ships, _ in found.values())
    assert all(str(why).startswith("breaks the budget") for _, why in found.values())


def test_what_was_not_measured_says_so() -> None:
    found = chosen(("f32", "f16", "int8"))
    assert set(found.values()) == {(False, "built, not measured")}


def test_the_one_build_that_holds_the_budget_needs_no_measurement() -> None:
    found = chosen(("f32", "int8"), None, {"int8": 2.0})
    assert found["f32"] == (True, None)


def test_builds_that_were_not_measured_against_each_other_do_not_replace_each_other() -> None:
    report = report_of(("f32", "f16", "int8"), {"f32": 3.0, "f16": 2.0, "int8": 1.0}, {})
    report["comparisons"] = [
        r for r in report["comparisons"] if {r["a"], r["b"]} == {"student.f32@ov", "student.f16@ov"}
    ]
    choose(report)
    found = {b["precision"]: (b["chosen"], b["rejected_because"]) for b in report["builds"][1:]}
    assert found["f16"] == (True, None)
    assert found["int8"] == (False, "not measured against f16")


def test_an_only_build_is_chosen_without_a_measurement() -> None:
    assert chosen(("f32",))["f32"] == (True, None)


def test_gates_of_a_float_network_speak_of_its_best_build() -> None:
    report = report_of(("f32", "bf16", "int8"), {"f32": 3.0, "bf16": 2.0, "int8": 1.0}, {"bf16": 0.5})
    choose(report)
    drop = GateSettings(measure="metric_drop", of="student", against="student", target="ov", max="1 pt")
    assert judge(drop, report)["value"] == pytest.approx(0.5)
    assert judge(GateSettings(measure="p50", of="student", target="ov", max="9 ms"), report)["value"] == 2.0
    for row in report["comparisons"]:
        row["ci95"] = (row["ratio"], row["ratio"])
    speedup = GateSettings(measure="speedup", of="quantized", against="student", target="ov", min="1 x")
    assert judge(speedup, report)["value"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("precision", "widest"),
    [(["f16", "f32"], "f32"), (["int8", "f16", "bf16"], "bf16"), (["int8"], "f16"), (["bf16", "int8", "f32"], "f32")],
)
def test_the_teacher_is_built_in_the_widest_float_precision_however_they_are_listed(
    precision: list[str], widest: str
) -> None:
    target = TargetSettings.model_validate({"runtime": "tensorrt", "precision": precision}, strict=False)
    roles = {"teacher": "teacher", "distill": "student", "quantize": "quantized"}
    context = SimpleNamespace(common=SimpleNamespace(roles=roles, targets={"gpu": target}))
    files = {role: {"model": role} for role in roles.values()}
    found = list(orders(cast(Any, context), cast(Any, SimpleNamespace(facts={"files": files}))))
    assert [order.precision for order in found if order.model == "teacher"] == [widest]
    assert any((order.model, order.precision) == ("student", widest) for order in found)
