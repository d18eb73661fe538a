"""Which build is shipped on a target: never a slower one, never one that breaks an accuracy budget."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.pipeline.assemble import _choose


def make(
    verdict: str | None, ratio: float = 0.5, gate: str | None = None, order: tuple[str, ...] = ("f32", "int8")
) -> dict[str, Any]:
    builds = [{"target": "ov", "model": "quantized" if p == "int8" else "student", "precision": p} for p in order]
    builds.insert(0, {"target": "ov", "model": "teacher", "precision": "f32"})
    comparisons = []
    if verdict is not None:
        comparisons = [{"a": "quantized.int8@ov", "b": "student.f32@ov", "ratio": ratio, "verdict": verdict}]
    gates = []
    if gate is not None:
        gates = [
            {
                "measure": "metric_drop",
                "of": "quantized",
                "target": None,
                "verdict": gate,
                "value": 2.0,
                "unit": "pt",
                "label": "budget",
            }
        ]
    models = [{"role": "teacher"}, {"role": "student"}]
    report = {"builds": builds, "comparisons": comparisons, "gates": gates, "models": models}
    _choose(report)
    return {b["model"]: (b["chosen"], b["rejected_because"]) for b in builds}


@pytest.mark.parametrize("order", [("f32", "int8"), ("int8", "f32")])
def test_int8_that_was_measured_faster_is_shipped(order: tuple[str, ...]) -> None:
    found = make("faster", order=order)
    assert found["quantized"] == (True, None)
    assert found["student"] == (False, "slower than int8: 2.00 times its time")
    assert found["teacher"] == (False, "the teacher, built to be compared with")


@pytest.mark.parametrize(
    ("verdict", "ratio", "words"),
    [
        ("slower", 1.3, "slower than f32: 1.30 times its time"),
        ("equivalent", 1.0, "only as fast as f32: 1.00 times its time"),
        ("inconclusive", 0.98, "not shown to be faster than f32: 0.98 times its time"),
    ],
)
def test_int8_that_was_not_measured_faster_is_not_shipped(verdict: str, ratio: float, words: str) -> None:
    found = make(verdict, ratio)
    assert found["quantized"] == (False, words)
    assert found["student"] == (True, None)


def test_int8_that_breaks_its_accuracy_budget_is_not_shipped_however_fast() -> None:
    found = make("faster", gate="failed")
    assert found["quantized"] == (False, "breaks the budget: budget, measured 2 pt")
    assert found["student"][0]
    assert make("faster", gate="passed")["quantized"][0]


def test_what_was_not_measured_says_so() -> None:
    found = make(None)
    assert found["quantized"] == found["student"] == (False, "built, not measured")
    assert found["teacher"] == (False, "the teacher, built to be compared with")


def test_an_only_build_is_chosen_without_a_measurement() -> None:
    assert make(None, order=("f32",))["student"] == (True, None)
