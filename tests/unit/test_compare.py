"""edgekd compare: what got worse is found, noise is not, and the exit code says which."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_report import build, comparison, empty, full, latency, metric
from typer.testing import CliRunner

from edgekd.bench.between import ratios
from edgekd.bench.statistics import Samples
from edgekd.cli.main import app
from edgekd.errors import ConfigError
from edgekd.report import changes
from edgekd.report.changes import Change, Options
from edgekd.report.compare import Outcome, compare, lines, markdown
from edgekd.report.draw import draw
from edgekd.report.schema import Latency, Metric, Report

NOWHERE = Path("/nonexistent")


def run(p50: float = 1.0, value: float = 0.98, *, sha: str = "ab", **changed: Any) -> Report:
    """A run of one int8 build."""
    row = latency("ov", "quantized", "int8", p50, ci95={f"p{p}_ms": [p50 * s * 0.99, p50 * s * 1.01]
                                                       for p, s in ((50, 1), (90, 1.1), (99, 1.5))})  # fmt: skip
    about = {*Latency.model_fields, "host", "engine"}
    row |= {key: changed.pop(key) for key in list(changed) if key in about}
    built = build("ov", "quantized", "int8", value, sha256=sha * 32, **changed.pop("built", {}))
    return full(models=[], comparisons=[], builds=[built], latency=[row], **changed)


def judged(base: Report, new: Report, **options: Any) -> dict[str, Change]:
    found = compare(base, NOWHERE, new, NOWHERE, Options(**options))
    return {f"{row.measure} of {row.what}".partition(" on ")[0]: row for row in found.rows}


def verdicts(base: Report, new: Report, **options: Any) -> dict[str, str]:
    return {name: row.verdict for name, row in judged(base, new, **options).items()}


def test_an_equal_run_has_not_changed() -> None:
    found = verdicts(run(), run(1.000001), run_sd=0.0005)
    assert set(found.values()) == {"same", "undecided"}  # 1% either way is not the same within 1%
    assert [name for name, verdict in found.items() if verdict == "undecided"] == [
        f"p{p}_ms of quantized int8" for p in (50, 90, 99)
    ]


def test_one_measurement_in_both_runs_is_the_same_however_disturbed_it_was() -> None:
    report = run(contended=True, throughput_per_s=900.0, peak_rss_bytes=100_000_000)
    rows = [row for row in judged(report, report).values() if row.note == "the same measurement"]
    assert {row.measure for row in rows} >= {"p50_ms", "p99_ms", "throughput_per_s", "peak memory"}
    assert {(row.verdict, row.change) for row in rows} == {("same", 0.0)}


def test_what_two_runs_differ_by_for_no_reason_is_no_regression_and_what_is_more_is_one() -> None:
    name = "p50_ms of quantized int8"
    assert verdicts(run(1.0), run(1.10))[name] == "undecided"
    assert verdicts(run(1.0), run(1.10), run_sd=0.01)[name] == "regression"
    assert verdicts(run(1.0), run(1.25))[name] == "regression"
    assert verdicts(run(1.25), run(1.0))[name] == "improvement"
    higher = {**changes.THRESHOLDS, "latency": 0.3}
    assert verdicts(run(1.0), run(1.25), thresholds=higher)[name] == "undecided"


def test_interval_of_two_shares_is_newcombes() -> None:
    # Newcombe (1998), table II, contrast (a), method 10: 56/70 - 48/80 is 0.2 [0.0524, 0.3339].
    a, b = (Metric(name="accuracy", value=h / n, unit="fraction", n=n) for h, n in ((48, 80), (56, 70)))
    value, interval = changes.difference(a.value, changes.wilson(a), b.value, changes.wilson(b))
    assert interval is not None
    assert [round(v, 4) for v in (value, *interval)] == [0.2, 0.0524, 0.3339]


@pytest.mark.parametrize(
    ("new", "verdict"), [(0.95, "regression"), (0.979, "undecided"), (0.98, "same"), (0.99, "improvement")]
)
def test_a_score_is_worse_only_where_the_interval_of_the_difference_says_so(new: float, verdict: str) -> None:
    assert verdicts(run(value=0.98), run(value=new))["accuracy of quantized int8"] == verdict


def test_an_error_is_better_when_it_is_smaller() -> None:
    def scored(value: float) -> Report:
        score = metric(value, name="mae", unit="target unit")
        return run(built={"metrics": [score]})

    assert verdicts(scored(0.2), scored(0.3))["mae of quantized int8"] == "regression"


@given(st.floats(-0.5, 0.5), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 0.2))
def test_a_verdict_never_contradicts_its_interval(change: float, below: float, above: float, threshold: float) -> None:
    interval = (change - below, change + above)
    worse = changes.verdict(change, interval, threshold, more_is_worse=True)
    better = changes.verdict(-change, (-interval[1], -interval[0]), threshold, more_is_worse=True)
    assert (worse == "regression") == (change > threshold and interval[0] > 0)
    assert (worse == "improvement") == (better == "regression")
    assert changes.verdict(change, interval, threshold, more_is_worse=False) == better


def test_a_percentile_under_contention_is_undecided_and_p50_goes_by_its_interval_alone_where_no_cpu_time_is_kept() -> (
    None
):
    found = judged(run(1.0), run(9.0, contended=True))
    assert {found[f"p{p}_ms of quantized int8"].verdict for p in (50, 90, 99)} == {"undecided"}
    assert found["p99_ms of quantized int8"].note == "other processes disturbed it"


def test_a_machine_that_slowed_down_proves_nothing() -> None:
    assert verdicts(run(1.0), run(9.0, throttled=True))["p50_ms of quantized int8"] == "undecided"


def beside_a_reference(ratio: float, p50: float, *, reference: str = "cd", engine: str = "1") -> Report:
    """A quantized build that takes `ratio` times as long as the float one, on a machine of some speed."""
    names = ("quantized.int8@ov", "student.f32@ov")
    rows = [
        latency("ov", model, precision, ms, engine=engine)
        for model, precision, ms in (("quantized", "int8", p50), ("student", "f32", p50 / ratio))
    ]
    builds = [
        build("ov", "quantized", "int8", 0.98, sha256=f"{ratio:032.6f}"),
        build("ov", "student", "f32", 0.98, sha256=reference * 32),
    ]
    held = comparison(ratio, "faster", ci95=[ratio * 0.995, ratio * 1.005], a=names[0], b=names[1])
    return full(models=[], builds=builds, latency=rows, comparisons=[held])


def test_against_the_same_file_in_both_runs_a_slow_machine_is_no_regression_and_5_percent_is_one() -> None:
    name = "p50_ms of quantized int8"
    steady = judged(beside_a_reference(0.5, 1.0), beside_a_reference(0.5, 1.6))[name]
    assert steady.verdict != "regression"
    assert steady.change == pytest.approx(0)
    assert steady.note == "held against student f32, the same file in both runs"
    slower = judged(beside_a_reference(0.5, 1.0), beside_a_reference(0.525, 0.8))[name]
    assert slower.verdict == "regression"
    assert slower.change == pytest.approx(0.05)


@pytest.mark.parametrize("other", [{"reference": "ef"}, {"engine": "2"}])
def test_another_file_or_another_engine_is_no_reference(other: dict[str, str]) -> None:
    found = judged(beside_a_reference(0.5, 1.0), beside_a_reference(0.5, 1.0, **other))
    assert "held against" not in found["p50_ms of quantized int8"].note


def test_another_machine_is_said_and_its_latency_is_not_judged() -> None:
    other = {"environment": {"host": "box2", "cpu": "Another CPU", "cores": 8, "memory_bytes": 8e9}}
    found = compare(run(), NOWHERE, run(9.0, value=0.9, **other), NOWHERE, Options())
    assert {row.verdict for row in found.rows if row.kind == "latency"} == {"not judged"}
    assert [row.measure for row in found.regressions()] == ["accuracy"]
    assert "ov: another machine (cpu A CPU -> Another CPU, cores 2 -> 8): latency is not judged" in found.notes[-1]
    across = compare(run(), NOWHERE, run(9.0, **other), NOWHERE, Options(across_machines=True))
    assert {row.verdict for row in across.rows if row.kind == "latency"} == {"regression"}


def test_the_same_machine_under_another_name_or_python_is_the_same() -> None:
    environment = {"host": "box9", "cpu": "A CPU", "cores": 2, "memory_bytes": 8e9 + 1e6, "python": "3.12"}
    assert verdicts(run(), run(2.0, environment=environment))["p50_ms of quantized int8"] == "regression"


def test_layers_that_left_the_precision_that_was_asked_for_are_a_regression() -> None:
    fewer = run(built={"executed_precision": {"int8": 15, "f32": 8}})
    row = judged(run(), fewer)["layers as asked of quantized int8"]
    assert (row.verdict, row.note) == ("regression", "20 int8, 3 f32 -> 15 int8, 8 f32")


@pytest.mark.parametrize(("size", "verdict"), [(311_000, "same"), (320_000, "regression"), (200_000, "improvement")])
def test_size_has_no_spread(size: int, verdict: str) -> None:
    assert verdicts(run(), run(built={"size_bytes": size}))["size of quantized int8"] == verdict


class Loaded(Report):
    throughput: tuple[dict[str, Any], ...] = ()
    load: tuple[dict[str, Any], ...] = ()


def loaded(factor: float) -> Report:
    about = {"target": "ov", "model": "quantized", "precision": "int8", "batch": 4, "streams": 2}
    many = about | {"throughput_per_s": 900 / factor, "ci95": {"throughput_per_s": [890 / factor, 910 / factor]}}
    rate = about | {"rate_per_s": 50.0, "p99_ms": 3 * factor, "ci95": {"p99_ms": None}}
    return Loaded.model_validate({**run().model_dump(), "throughput": [many], "load": [rate]})


def test_throughput_of_many_at_once_and_latency_under_a_rate_are_compared_where_both_have_them() -> None:
    found = {row.what: row for row in compare(loaded(1), NOWHERE, loaded(1.5), NOWHERE, Options()).rows}
    assert found["quantized int8 on ov, batch 4, streams 2"].verdict == "regression"
    tail = found["quantized int8 on ov, batch 4, streams 2 at 50 per s"]
    assert (tail.verdict, tail.note) == ("undecided", "no interval")
    only = compare(loaded(1), NOWHERE, run(), NOWHERE, Options())
    assert len(only.only_base) == 2 and not only.only_new


def on_data(fingerprint: str, *, test: str | None = None, value: float = 0.98, **more: Any) -> Report:
    splits = {} if test is None else {"train": fingerprint, "validation": fingerprint, "test": test}
    return run(value=value, data={"fingerprint": fingerprint, "split_fingerprints": splits}, **more)


def test_scores_of_other_samples_are_not_compared_and_that_is_no_success() -> None:
    for base, new in (
        (on_data("a"), on_data("b", value=0.5)),
        (on_data("a", test="x"), on_data("a", test="y", value=0.99)),
        (on_data("a", test="x"), on_data("b", value=0.5)),  # a report of old, which tells no splits
    ):
        found = compare(base, NOWHERE, new, NOWHERE, Options())
        (score,) = (row for row in found.rows if row.kind == "metric")
        assert (score.verdict, score.note) == ("not judged", "other samples, n 10000")
        assert (found.incomparable, found.exit_code) == (["quantized int8 on ov"], 2)
        assert "quantized int8 on ov: scores are of other samples and cannot be compared" in lines(found)
        assert markdown(found).startswith("## ❌ scores of other samples: not comparable")
    slower = compare(on_data("a"), NOWHERE, on_data("b", p50=2.0), NOWHERE, Options())
    assert (slower.incomparable, slower.exit_code) == (["quantized int8 on ov"], 5)


def test_more_training_data_and_the_same_test_set_are_compared() -> None:
    found = compare(on_data("a", test="x"), NOWHERE, on_data("b", test="x", value=0.9), NOWHERE, Options())
    assert [row.measure for row in found.regressions()] == ["accuracy"]
    assert not found.incomparable
    assert found.notes == ["the data differ: other samples in train, validation"]


def test_scores_of_other_samples_are_judged_where_that_is_asked_for() -> None:
    found = compare(on_data("a"), NOWHERE, on_data("b", value=0.9), NOWHERE, Options(across_data=True))
    assert (found.incomparable, found.exit_code) == ([], 5)


def with_another_target() -> Report:
    both = [build(name, "quantized", "int8", 0.98, sha256="ab" * 32) for name in ("ov", "ort")]
    return full(models=[], comparisons=[], builds=both, latency=[])


def test_a_target_that_is_gone_is_a_regression_unless_it_is_allowed() -> None:
    found = compare(with_another_target(), NOWHERE, run(), NOWHERE, Options())
    assert (found.missing, found.verdict, found.exit_code) == (["ort"], "regression", 5)
    assert "target ort is missing in new: a regression (--allow-missing ort)" in lines(found)
    assert markdown(found).startswith("## ❌ 1 regression\n")
    allowed = compare(with_another_target(), NOWHERE, run(), NOWHERE, Options(may_be_missing=["ort"]))
    assert (allowed.missing, allowed.exit_code) == ([], 0)
    more = compare(run(), NOWHERE, with_another_target(), NOWHERE, Options())
    assert (more.missing, more.exit_code) == ([], 0)


def test_a_build_that_is_gone_is_a_regression_though_its_target_is_still_there() -> None:
    both = [build("ov", "quantized", precision, 0.98, sha256="ab" * 32) for precision in ("f32", "int8")]
    base = full(models=[], comparisons=[], builds=both, latency=[])
    new = full(models=[], comparisons=[], builds=both[:1], latency=[])
    found = compare(base, NOWHERE, new, NOWHERE, Options())
    assert (found.missing, found.missing_builds, found.verdict, found.exit_code) == ([], ["ov.int8"], "regression", 5)
    assert "build ov.int8 is missing in new: a regression (--allow-missing ov.int8)" in lines(found)
    assert markdown(found).startswith("## ❌ 1 regression\n")
    for name in ("ov", "ov.int8"):
        assert compare(base, NOWHERE, new, NOWHERE, Options(may_be_missing=[name])).exit_code == 0
    assert compare(base, NOWHERE, new, NOWHERE, Options(may_be_missing=["ov.f32"])).exit_code == 5
    assert compare(new, NOWHERE, base, NOWHERE, Options()).exit_code == 0


def test_a_name_that_may_be_missing_and_that_the_base_has_not_is_refused() -> None:
    for name, meant in (("orrt", "ort"), ("ort.int", "ort.int8")):
        with pytest.raises(ConfigError, match=f"^--allow-missing {name}: BASE has no such target") as caught:
            compare(with_another_target(), NOWHERE, run(), NOWHERE, Options(may_be_missing=[name]))
        assert caught.value.hint == f"did you mean {meant!r}?"


def test_why_a_comparison_is_no_success_is_said_in_a_line_each(tmp_path: Path) -> None:
    reports = {"base": with_another_target(), "new": run(), "other": on_data("b")}
    for name, report in reports.items():
        (tmp_path / f"{name}.json").write_text(report.model_dump_json())
    base, new, other = (str(tmp_path / f"{name}.json") for name in reports)
    code, out, err = call(base, new)
    assert (code, err) == (
        5, "error: regression: target ort is missing in new\nhelp: --allow-missing ort, if it was meant to go\n",
    )  # fmt: skip
    assert call(base, new, "--allow-missing", "ort")[0] == 0
    code, out, err = call(new, other, "--json")
    assert err.startswith("error: not comparable: scores of quantized int8 on ov are of other samples\nhelp: run BASE")
    document = json.loads(out)
    assert (code, document["exit_code"], document["missing_targets"]) == (2, 2, [])
    assert document["not_comparable"] == ["quantized int8 on ov"]
    assert call(new, other, "--across-data")[0] == 0


def test_two_reports_without_anything_in_common_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing in common"):
        compare(run(), NOWHERE, empty(), NOWHERE, Options())


def launches(median_ms: float, seed: int, *, launch_sd: float = 0.01) -> list[Samples]:
    """Five launches of 30 rounds, each with a speed of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(5):
        ms = median_ms * math.exp(rng.normal(0, launch_sd)) * np.exp(rng.gamma(2, 0.02, (60, 20)))
        wall = (ms * 1e6).astype(np.int64)
        found.append(Samples(wall, wall.sum(axis=1), np.zeros(60, np.int64)))
    return found


def test_from_the_launches_of_both_runs_noise_is_no_change_and_a_third_more_is_one() -> None:
    rng = np.random.default_rng(7)
    judged_so = []
    for trial in range(5):
        moved = math.exp(rng.normal(0, changes.RUN_SD))
        for factor in (1.0, 1.33):
            found = ratios(launches(1.0, trial), launches(moved * factor, 99 + trial), seed=0)
            assert set(found) == {"p50", "p90", "p95", "p99", "mean", "cpu_p50"}
            for name in ("p50", "p99", "mean"):
                one = found[name]
                low, high = changes.widened(one.value, (one.low, one.high), changes.RUN_SD)
                verdict = changes.verdict(one.value - 1, (low - 1, high - 1), 0.01, more_is_worse=True)
                judged_so.append((factor, verdict))
    assert judged_so.count((1.0, "regression")) <= 1  # of 15; 5% of intervals miss on either side
    assert judged_so.count((1.33, "regression")) >= 14
    assert judged_so.count((1.33, "improvement")) == 0


def test_samples_beside_the_reports_are_used_and_cpu_time_stands_in_under_contention(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        arrays = {}
        for index, one in enumerate(launches(1.0, seed)):
            arrays |= {f"{index}/wall_ns": one.wall_ns, f"{index}/visit_cpu_ns": one.visit_cpu_ns}
            arrays |= {f"{index}/visit_switches": one.visit_switches, f"{index}/start_ns": np.arange(60)}
        np.savez(tmp_path / name / "s.npz", **arrays)
    report = run(samples_path="s.npz", contended=True, cpu_p50_ms=1.0, peak_rss_bytes=100_000_000)
    other = run(samples_path="s.npz", contended=True, cpu_p50_ms=1.0, peak_rss_bytes=100_000_001)
    rows = compare(report, tmp_path / "a", other, tmp_path / "b", Options()).rows
    found = {row.measure: row for row in rows}
    assert found["cpu_p50_ms"].ci95 is not None and "CPU time" in found["cpu_p50_ms"].note
    assert {"throughput_per_s", "peak memory"} <= set(found)
    assert found["throughput_per_s"].verdict == "undecided"


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    for name, report in (("base", run(1.0)), ("new", run(1.5))):
        (tmp_path / name).mkdir()
        draw(report, tmp_path / name)
    return str(tmp_path / "base"), str(tmp_path / "new")


def call(*words: str) -> tuple[int, str, str]:
    from edgekd.cli.main import run as main

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("GITHUB_ACTIONS", raising=False)
        import contextlib
        import io

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
            main(["compare", *words])
    return int(str(end.value.code)), out.getvalue(), err.getvalue()


def test_a_regression_ends_with_5_and_is_named(two: tuple[str, str]) -> None:
    code, out, err = call(*two)
    assert code == 5
    assert "p50_ms" in out and "3 regression" in out
    assert err.splitlines()[0].startswith("error: regression: p50_ms of quantized int8 on ov, batch 1: +50% [")
    assert err.splitlines()[1] == "help: --threshold latency=50%, if so much is accepted"
    assert call(*two, "--threshold", "latency=50%")[0] == 0
    assert call(two[1], two[0])[0] == 0
    assert call(two[0], f"{two[1]}/report.json", "--threshold", "latency=60%")[0] == 0


def test_json_is_one_document_with_every_row(two: tuple[str, str]) -> None:
    code, out, _ = call(*two, "--json")
    document = json.loads(out)
    assert (code, document["exit_code"], document["verdict"]) == (5, 5, "regression")
    worse = [row for row in document["rows"] if row["verdict"] == "regression"]
    assert {row["measure"] for row in worse} == {"p50_ms", "p90_ms", "p99_ms"}
    assert all(row["ci95"][0] > 0 for row in worse)


def test_markdown_shows_what_changed_and_folds_the_rest(two: tuple[str, str]) -> None:
    _, out, _ = call(*two, "--markdown")
    assert out.startswith("## ❌ 3 regressions\n")
    before, after = out.split("<details>")
    assert before.count("| regression |") == 3
    assert "| same |" in after and "regression" not in after
    assert markdown(Outcome([])).startswith("## ✅ no regression")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{base}", "/nowhere"], "cannot read /nowhere"),
        (["{base}", "{other}"], "is not a report of schema version 1: schema_version"),
        (["{base}", "{junk}"], "is not a report of schema version 1"),
        (["{base}", "{new}", "--threshold", "latncy=2%"], "names no kind"),
        (["{base}", "{new}", "--threshold", "latency=2pt"], "no such number"),
        (["{base}", "{new}", "--threshold", "metric=1%"], "no such number"),
        (["{base}", "{new}", "--run-noise", "much"], "no such number"),
        (["{base}", "{new}", "--json", "--markdown"], "exclude each other"),
    ],
)
def test_a_mistake_ends_with_2_and_a_hint(words: list[str], said: str, two: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(run().model_dump_json().replace('"schema_version":1', '"schema_version":2'))
    (tmp_path / "junk.json").write_text("junk")
    places = {"base": two[0], "new": two[1], "other": tmp_path / "other.json", "junk": tmp_path / "junk.json"}
    code, _, err = call(*(word.format(**places) for word in words))
    assert code == 2
    assert said in err
    assert "help: " in err


def test_thresholds_of_the_help_are_those_that_count() -> None:
    shown = " ".join(CliRunner().invoke(app, ["compare", "--help"]).stdout.split())
    for kind in changes.THRESHOLDS:
        assert kind in shown
