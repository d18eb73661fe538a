"""Budgets: limits with units, and verdicts that look at the interval."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.config import validate
from edgekd.pipeline.gates import GateSettings, broken, judge, rejects
from edgekd.pipeline.runner import Outcome, _judge_gates


def gate(**values: Any) -> GateSettings:
    made, problems = validate(GateSettings, {"measure": "p50", "of": "quantized", **values})
    assert made is not None, problems
    return made


def report(**rows: Any) -> dict[str, Any]:
    return {"models": [], "builds": [], "latency": [], "comparisons": [], **rows}


def latency(p50: float, low: float, high: float) -> dict[str, Any]:
    row = {"model": "quantized", "target": "ov", "p50_ms": p50, "p99_ms": None, "ci95": {"p50_ms": [low, high]}}
    return report(latency=[row])


def metric(
    role: str, value: float, *, better: int = 1, ci95: list[float] | None = None, **others: float | tuple[float, ...]
) -> dict[str, Any]:
    """A row of a network; `others`: by how much it differs from another one, alone or with the ends of the interval."""
    apart = {name: by if isinstance(by, tuple) else (by, by, by) for name, by in others.items()}
    against = {name: {"value": by, "ci95": [low, high]} for name, (by, low, high) in apart.items()}
    row = {"name": "accuracy", "value": value, "ci95": ci95, "better": better, "evaluated": True, "against": against}
    return {"role": role, "size_bytes": 1000, "metrics": [{"value": 0.0, "ci95": None}, row]}


@pytest.mark.parametrize(
    ("measure", "text", "base"),
    [
        ("p50", "2 ms", 2.0), ("p99", "250us", 0.25), ("p90", "1.5 s", 1500.0), ("metric_drop", "1 pt", 0.01),
        ("metric_drop", "2 %", 0.02), ("metric_drop", 0.5, 0.5), ("metric", "0.9", 0.9), ("metric", "90 %", 0.9),
        ("size", "1.5 MB", 1.5e6), ("size", "2 KiB", 2048.0), ("size", "7 B", 7.0), ("speedup", "1.2 x", 1.2),
        ("speedup", 2, 2.0), ("metric_drop", "-1e-1 pt", -0.001), ("throughput", "500 /s", 500.0),
        ("throughput", "1e3/s", 1000.0), ("peak_memory", "80 MB", 8e7), ("peak_memory", "1 GiB", 2.0**30),
        ("parity", "99.5 %", 0.995), ("executed_share", 0.9, 0.9),
    ],
)  # fmt: skip
def test_a_limit_is_read_with_its_unit(measure: str, text: str | float, base: float) -> None:
    assert gate(measure=measure, max=text).limit() == pytest.approx(base)


@pytest.mark.parametrize(
    ("measure", "text"),
    [("p50", "2"), ("p50", 2), ("p50", "2 pt"), ("size", "3 ms"), ("size", "3"), ("metric", "soon"), ("p50", "1.2. ms"),
     ("p50", "ms"), ("p50", ""), ("speedup", "2 %"), ("p50", "nan ms"),
     ("throughput", "500"), ("throughput", "2 ms"), ("parity", "1 pt"), ("peak_memory", "90 %")],
)  # fmt: skip
def test_a_limit_without_a_unit_of_its_measure_is_refused(measure: str, text: str | float) -> None:
    made, problems = validate(GateSettings, {"measure": measure, "of": "student", "max": text})
    assert made is None
    assert "is no " in problems[0].message
    assert problems[0].hint.startswith("write e.g.")


@pytest.mark.parametrize("limits", [{}, {"max": "1 ms", "min": "1 ms"}])
def test_a_gate_has_one_limit(limits: dict[str, str]) -> None:
    _, problems = validate(GateSettings, {"measure": "p50", "of": "student", **limits})
    assert [problem.message for problem in problems] == ["the file: a gate has one limit, max or min"]


@pytest.mark.parametrize(
    ("limits", "interval", "verdict"),
    [
        ({"max": "2 ms"}, (1.0, 1.9), "passed"), ({"max": "2 ms"}, (1.9, 2.1), "undecided"),
        ({"max": "2 ms"}, (2.1, 3.0), "failed"), ({"min": "2 ms"}, (2.1, 3.0), "passed"),
        ({"min": "2 ms"}, (1.9, 2.1), "undecided"), ({"min": "2 ms"}, (1.0, 1.9), "failed"),
        ({"max": "2 ms"}, (2.0, 2.0), "passed"),
    ],
)  # fmt: skip
def test_a_verdict_looks_at_the_whole_interval(limits: Any, interval: tuple[float, float], verdict: str) -> None:
    row = judge(gate(target="ov", **limits), latency(sum(interval) / 2, *interval))
    assert (row["verdict"], row["unit"], row["limit"], row["ci95"]) == (verdict, "ms", 2.0, interval)


@pytest.mark.parametrize(("undecided", "ends_the_run"), [("pass", False), ("fail", True)])
def test_what_lies_on_both_sides_or_was_not_measured_is_undecided(undecided: str, ends_the_run: bool) -> None:
    budget = gate(target="ov", max="2 ms", undecided=undecided)
    for measured in (latency(2.0, 1.9, 2.1), report()):
        row = judge(budget, measured)
        assert row["verdict"] == "undecided"
        assert broken(budget, row) is ends_the_run
    assert judge(budget, report())["message"] == "not measured"


def test_a_run_that_stopped_early_may_leave_undecided_what_it_did_not_measure_alone() -> None:
    budget = gate(target="ov", max="2 ms", undecided="fail")
    unmeasured, measured = judge(budget, report()), judge(budget, latency(2.0, 1.9, 2.1))
    assert [broken(budget, row, whole=False) for row in (unmeasured, measured)] == [False, True]
    assert [broken(budget, row, whole=True) for row in (unmeasured, measured)] == [True, True]


@pytest.mark.parametrize(
    ("measure", "text"),
    [("parity", "150 %"), ("parity", 1.5), ("executed_share", "101 %"), ("metric", "100.1 %"), ("parity", "-1 %")],
)
def test_a_share_beyond_its_scale_is_refused(measure: str, text: str | float) -> None:
    for side in ("min", "max"):
        made, problems = validate(GateSettings, {"measure": measure, "of": "student", side: text})
        assert made is None
        assert f"{text!r} is no share for {measure}" in problems[0].message
    assert gate(measure="metric", max=2.5).limit() == 2.5  # a mean absolute error is no share


@pytest.mark.parametrize(
    ("share", "limit", "verdict"),
    [(1.0, {"min": "100 %"}, "passed"), (0.999, {"min": "100 %"}, "failed"), (1.0, {"min": "99.9 %"}, "undecided"),
     (0.0, {"max": "0 %"}, "passed"), (0.001, {"max": "0 %"}, "failed")],
)  # fmt: skip
def test_a_limit_at_the_end_of_the_scale_is_judged_by_the_samples_at_hand(
    share: float, limit: dict[str, str], verdict: str
) -> None:
    parity = {"agreement": {"y": share}, "n": 1000}
    build = {"target": "ov", "model": "quantized", "precision": "int8", "parity": parity}
    row = judge(gate(measure="parity", target="ov", **limit), report(builds=[build]))
    assert row["verdict"] == verdict
    assert ("samples at hand" in (row["message"] or "")) is (verdict == "passed")


def test_an_accuracy_of_all_samples_holds_a_limit_of_all() -> None:
    found = report(models=[metric("quantized", 1.0, ci95=[0.99, 1.0])])
    assert judge(gate(measure="metric", min="100 %"), found)["verdict"] == "passed"
    beyond = report(models=[metric("quantized", 1.0, ci95=[0.9, 1.1])])  # an error in units of its own, no share
    assert judge(gate(measure="metric", min=1.0), beyond)["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("own", "other", "better", "drop"), [(0.9, 0.95, 1, 5.0), (0.5, 0.4, -1, 10.0), (0.97, 0.95, 1, -2.0)]
)
def test_a_drop_is_how_much_worse_a_network_is(own: float, other: float, better: int, drop: float) -> None:
    models = [metric("student", other), metric("quantized", own, better=better, student=own - other)]
    row = judge(gate(measure="metric_drop", against="student", max="1 pt"), report(models=models))
    assert row["value"] == pytest.approx(drop)
    assert (row["limit"], row["unit"]) == (1.0, "pt")
    assert row["verdict"] == ("passed" if drop <= 1 else "failed")


@pytest.mark.parametrize(
    ("better", "difference", "ends", "verdict"),
    [
        (1, (-0.008, -0.014, -0.002), (0.2, 1.4), "undecided"), (1, (-0.02, -0.029, -0.011), (1.1, 2.9), "failed"),
        (1, (-0.004, -0.009, 0.001), (-0.1, 0.9), "passed"), (-1, (0.008, 0.002, 0.014), (0.2, 1.4), "undecided"),
        (-1, (0.02, 0.011, 0.029), (1.1, 2.9), "failed"),
    ],
)  # fmt: skip
def test_a_drop_is_judged_with_the_interval_of_its_pairs(
    better: int, difference: tuple[float, ...], ends: tuple[float, float], verdict: str
) -> None:
    models = [metric("student", 0.9), metric("quantized", 0.9 + difference[0], better=better, student=difference)]
    row = judge(gate(measure="metric_drop", against="student", max="1 pt"), report(models=models))
    assert (row["ci95"], row["verdict"], row["no_interval"]) == (pytest.approx(ends), verdict, None)


@pytest.mark.parametrize(("drop", "shipped"), [(0.8, True), (1.2, False)])
def test_a_drop_that_its_interval_leaves_open_decides_by_its_value_what_is_shipped(drop: float, shipped: bool) -> None:
    quantized = metric("quantized", 0.9, student=(-drop / 100, -0.02, 0.0))
    budget = gate(measure="metric_drop", against="student", max="1 pt", otherwise="float")
    row = judge(budget, report(models=[metric("student", 0.9), quantized]))
    assert (row["verdict"], rejects(budget, row), broken(budget, row)) == ("undecided", not shipped, False)
    assert (row["message"] is None) is shipped


@pytest.mark.parametrize(("undecided", "code"), [("pass", 0), ("fail", 5)])
def test_a_run_says_which_budget_is_undecided_and_how_that_would_end_it(undecided: str, code: int) -> None:
    budget = gate(target="ov", max="2 ms", undecided=undecided)
    warned, errors, hints = [], [], []
    log: Any = SimpleNamespace(
        warning=warned.append, error=lambda message, hint: (errors.append(message), hints.append(hint))
    )
    tree = SimpleNamespace(where=lambda place: "p.yaml:7:5")
    pipeline: Any = SimpleNamespace(settings=SimpleNamespace(gates=[budget, budget]), tree=tree)
    rows = [judge(budget, latency(2.0, 1.9, 2.1)), judge(budget, latency(1.0, 0.9, 1.1))]
    outcome = Outcome(report={"gates": [{**row, "broken": broken(budget, row)} for row in rows]})
    _judge_gates(pipeline, outcome, log)
    assert outcome.exit_code == code
    told = "p50 of quantized on ov at most 2 ms, measured 2 ms [1.9, 2.1], limit 2 ms"
    if undecided == "pass":
        assert warned == [f"p.yaml:7:5: budget undecided: {told}; `undecided: fail` would end the run with 5"]
        assert errors == []
    else:
        assert (warned, errors) == ([], [f"p.yaml:7:5: budget broken: {told} (undecided)"])
        assert hints == ["more test samples or launches narrow the interval; or change the limit there"]


def test_a_budget_that_never_ends_a_run_is_not_said_to() -> None:
    budget = gate(measure="metric_drop", against="float", max="1 pt", otherwise="float", undecided="fail")
    row: dict[str, Any] = {"measure": "metric_drop", "of": "quantized", "limit": 1.0, "unit": "pt", "label": "drop"}
    row |= {"verdict": "undecided", "value": 1.0, "ci95": [0.5, 1.5]}
    warned: list[str] = []
    log: Any = SimpleNamespace(warning=warned.append)
    tree = SimpleNamespace(where=lambda place: "p.yaml:7:5")
    pipeline: Any = SimpleNamespace(settings=SimpleNamespace(gates=[budget]), tree=tree)
    outcome = Outcome(report={"gates": [{**row, "broken": broken(budget, row)}]})
    _judge_gates(pipeline, outcome, log)
    assert outcome.exit_code == 0
    assert len(warned) == 1
    assert "with 5" not in warned[0]


def test_what_has_no_interval_says_why() -> None:
    build = {"target": "ov", "model": "quantized", "size_bytes": 300, "executed_precision": {"int8": 9, "f32": 1}}
    row = {"model": "quantized", "target": "ov", "peak_rss_bytes": 80_000_000, "ci95": {}}
    found = report(builds=[build], latency=[row])
    limits = {"size": "1 kB", "executed_share": "95 %", "peak_memory": "1 GB"}
    told = {measure: judge(gate(measure=measure, target="ov", max=limit), found) for measure, limit in limits.items()}
    assert {row["verdict"] for row in told.values()} == {"passed"}
    assert all(row["ci95"] is None and row["no_interval"] for row in told.values())
    assert "measured once" in told["peak_memory"]["no_interval"]


def test_a_drop_on_a_target_is_that_of_its_build() -> None:
    build = {**metric("", 0.90, student=-0.05), "model": "quantized", "target": "ov"}
    models = [metric("student", 0.95), metric("quantized", 0.95)]
    row = judge(
        gate(measure="metric_drop", against="student", target="ov", max="1 pt"), report(models=models, builds=[build])
    )
    assert (row["value"], row["verdict"]) == (pytest.approx(5.0), "failed")


def test_only_the_metrics_of_the_evaluate_stage_are_judged() -> None:
    model = metric("quantized", 0.9)
    model["metrics"].pop()
    row = judge(gate(measure="metric", min="0.5"), report(models=[model]))
    assert (row["value"], row["verdict"]) == (None, "undecided")


def test_a_speedup_turns_the_ratio_of_times_round() -> None:
    pair = {"target": "ov", "a": "quantized.int8@ov", "b": "teacher.f32@ov", "ratio": 0.5, "ci95": [0.4, 0.6]}
    budget = gate(measure="speedup", against="teacher", target="ov", min="1.2 x")
    row = judge(budget, report(comparisons=[pair]))
    assert (row["value"], row["ci95"], row["verdict"]) == (2.0, (1 / 0.6, 2.5), "passed")
    turned = {**pair, "a": pair["b"], "b": pair["a"], "ratio": 2.0, "ci95": [1.5, 2.5]}
    assert judge(budget, report(comparisons=[turned]))["ci95"] == (1.5, 2.5)
    assert judge(budget, report(comparisons=[{**pair, "target": "ort"}]))["verdict"] == "undecided"


@pytest.mark.parametrize("turned", [False, True])
def test_a_speedup_of_two_float_networks_compares_builds_of_one_precision(turned: bool) -> None:
    """The student's f16 is its best build; the teacher was built in f32 alone."""
    pairs = [("student.f16@ov", "teacher.f32@ov", 0.25), ("student.f32@ov", "teacher.f32@ov", 0.5)]
    rows = [{"target": "ov", "a": a, "b": b, "ratio": ratio, "ci95": [ratio, ratio]} for a, b, ratio in pairs]
    if turned:
        rows = [{**row, "a": row["b"], "b": row["a"], "ratio": 1 / row["ratio"], "ci95": [4.0, 4.0]} for row in rows]
    found = report(comparisons=rows, preferred={("ov", "student"): "f16"})
    budget = gate(measure="speedup", of="student", against="teacher", target="ov", min="1 x")
    assert judge(budget, found)["value"] == pytest.approx(2.0)
    assert judge(budget, report(comparisons=rows[:1], preferred=found["preferred"]))["value"] == pytest.approx(4.0)


def test_size_is_that_of_the_network_or_of_its_build() -> None:
    build = {"target": "ov", "model": "quantized", "size_bytes": 300}
    measured = report(models=[metric("quantized", 1.0)], builds=[build])
    assert judge(gate(measure="size", max="1 kB"), measured)["value"] == 1000.0
    assert judge(gate(measure="size", max="1 kB", target="ov"), measured)["value"] == 300.0


def test_a_throughput_is_judged_with_its_interval() -> None:
    row = {"model": "quantized", "target": "ov", "throughput_per_s": 100.0, "ci95": {"throughput_per_s": [90.0, 110.0]}}
    for limit, verdict in (("80 /s", "passed"), ("100 /s", "undecided"), ("120 /s", "failed")):
        found = judge(gate(measure="throughput", target="ov", min=limit), report(latency=[row]))
        assert (found["verdict"], found["value"], found["unit"], found["ci95"]) == (verdict, 100.0, "/s", (90.0, 110.0))


def test_memory_is_that_of_the_measuring_process() -> None:
    row = {"model": "quantized", "target": "ov", "peak_rss_bytes": 80_000_000, "ci95": {}}
    found = judge(gate(measure="peak_memory", target="ov", max="64 MB"), report(latency=[row]))
    assert (found["verdict"], found["value"], found["limit"], found["unit"]) == ("failed", 8e7, 6.4e7, "B")
    assert judge(gate(measure="peak_memory", target="ov", max="1 MB"), report())["message"] == "not measured"


def test_parity_is_the_least_agreement_of_a_builds_outputs() -> None:
    parity = {"agreement": {"a": 0.999, "b": 0.97}, "n": 10_000}
    build = {"target": "ov", "model": "quantized", "precision": "int8", "parity": parity}
    found = judge(gate(measure="parity", target="ov", min="98 %"), report(builds=[build]))
    assert (found["verdict"], found["value"], found["limit"], found["unit"]) == ("failed", 97.0, 98.0, "%")
    assert found["ci95"] == pytest.approx((96.65, 97.32), abs=0.01)  # Wilson's of 9,700 in 10,000
    few = {**build, "parity": {**parity, "n": 100}}
    assert judge(gate(measure="parity", target="ov", min="98 %"), report(builds=[few]))["verdict"] == "undecided"
    for unknown in (None, {"agreement": {}, "n": 1}):
        row = judge(gate(measure="parity", target="ov", min="98 %"), report(builds=[{**build, "parity": unknown}]))
        assert row["verdict"] == "undecided"


def test_the_executed_share_counts_layers_of_a_precision() -> None:
    build = {"target": "ov", "model": "quantized", "precision": "int8", "executed_precision": {"int8": 9, "f32": 1}}
    cases = [({"min": "90 %"}, "passed"), ({"min": "91 %"}, "failed"), ({"max": "5 %", "precision": "f32"}, "failed")]
    for values, verdict in [*cases, ({"min": 0.1, "precision": "f16"}, "failed")]:
        row = judge(gate(measure="executed_share", target="ov", **values), report(builds=[build]))
        assert row["verdict"] == verdict


def test_float_is_the_network_that_was_quantized() -> None:
    models = [metric("teacher", 0.99), metric("student", 0.95), metric("quantized", 0.94, teacher=-0.05, student=-0.01)]
    drop = gate(measure="metric_drop", against="float", max="2 pt")
    assert judge(drop, report(models=models))["value"] == pytest.approx(1.0)
    assert judge(drop, report(models=[models[0], models[2]]))["value"] == pytest.approx(5.0)
    pairs = [{"target": "ov", "a": "quantized.int8@ov", "b": f"{role}.f32@ov", "ratio": ratio, "ci95": [ratio, ratio]}
             for role, ratio in (("teacher", 0.1), ("student", 0.5))]  # fmt: skip
    speedup = gate(measure="speedup", against="float", target="ov", min="1 x")
    assert judge(speedup, report(models=models, comparisons=pairs))["value"] == pytest.approx(2.0)


def test_a_difference_in_latency_within_its_noise_breaks_no_budget() -> None:
    """1.02 times slower, but as likely faster: nobody's build fails for that, unless it asked to."""
    pair = {"target": "ov", "a": "quantized.int8@ov", "b": "teacher.f32@ov", "ratio": 1.02, "ci95": [0.93, 1.11]}
    for undecided, breaks in (("pass", False), ("fail", True)):
        budget = gate(measure="speedup", against="teacher", target="ov", min="1 x", undecided=undecided)
        row = judge(budget, report(comparisons=[pair]))
        assert (row["verdict"], broken(budget, row)) == ("undecided", breaks)


def test_a_precision_is_counted_by_one_measure_alone() -> None:
    _, problems = validate(GateSettings, {"measure": "p50", "of": "student", "max": "1 ms", "precision": "f32"})
    assert "precision does nothing for p50" in problems[0].message


@given(st.floats(0.1, 10), st.floats(0, 5), st.floats(0, 5))
def test_max_and_min_never_both_fail(limit: float, below: float, above: float) -> None:
    measured = latency(limit, limit - below, limit + above)
    upper, lower = (judge(gate(target="ov", **{side: f"{limit:.17g} ms"}), measured) for side in ("max", "min"))
    assert {upper["verdict"], lower["verdict"]} & {"undecided", "passed"}


ALL = {"teacher", "distill", "quantize", "compile", "evaluate", "bench"}


@pytest.mark.parametrize(
    ("values", "stages", "words"),
    [
        ({"max": "1 ms", "target": "ov"}, ALL, None),
        ({"max": "1 ms"}, ALL, "names no target"),
        ({"max": "1 ms", "target": "no"}, ALL, "unknown target 'no'"),
        ({"max": "1 ms", "target": "ov"}, ALL - {"bench"}, "needs the stage bench"),
        ({"max": "1 ms", "target": "ov"}, ALL - {"quantize"}, "nothing is quantized"),
        ({"measure": "metric", "min": "0.9"}, ALL - {"evaluate"}, "needs the stage evaluate"),
        ({"measure": "metric_drop", "max": "1 pt"}, ALL, "nothing to compare with"),
        ({"measure": "metric_drop", "max": "1 pt", "against": "float"}, ALL, None),
        ({"measure": "metric_drop", "of": "student", "max": "1 pt", "against": "float"}, ALL, "for the quantized"),
        ({"measure": "parity", "min": "99 %"}, ALL, "names no target"),
        ({"measure": "parity", "min": "99 %", "target": "ov"}, ALL - {"evaluate"}, "needs the stage evaluate"),
        ({"measure": "throughput", "min": "9 /s", "target": "ov"}, ALL - {"bench"}, "needs the stage bench"),
        ({"measure": "peak_memory", "max": "9 MB", "target": "ov"}, ALL - {"bench"}, "needs the stage bench"),
        ({"measure": "executed_share", "min": "9 %", "target": "ov"}, ALL - {"compile"}, "needs the stage compile"),
        ({"measure": "metric_drop", "max": "1 pt", "against": "student"}, ALL - {"distill"}, "names a student"),
        ({"measure": "size", "of": "teacher", "max": "1 B"}, {"model", "quantize"}, "names a teacher"),
        ({"measure": "size", "of": "student", "max": "1 B"}, {"model", "quantize"}, None),
        ({"measure": "size", "of": "teacher", "max": "1 B"}, {"model", "distill"}, None),
    ],
)
def test_a_gate_fits_the_rest_of_the_file(values: dict[str, Any], stages: set[str], words: str | None) -> None:
    found = gate(**values).problems(stages, {"ov"})
    assert [words in message for message, _ in found if words] == ([True] if words else [])
    assert all(hint for _, hint in found)
    assert bool(found) == bool(words)
