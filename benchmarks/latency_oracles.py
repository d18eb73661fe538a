"""Is edgekd's latency right? Against OpenVINO's benchmark_app and MLPerf LoadGen, and on changes that are known.

    python benchmarks/latency_oracles.py oracles   [--networks NAME..] [--rounds 5] [--seconds 5]
    python benchmarks/latency_oracles.py trials    [--trials 20]
    python benchmarks/latency_oracles.py agreement [--rounds 5] [--seconds 5]
    python benchmarks/latency_oracles.py coverage  [--experiments 200]
    python benchmarks/latency_oracles.py table

`oracles` (20 minutes): networks of about 30 us, 100 us and 3 ms, the agent of `edgekd measure` and an oracle in turns,
all on one core; medians over rounds. benchmark_app's p50 against OpenVINO's own clock in our loop, within 3%, and
against our wall clock, within 5% or 10 us; LoadGen's p50 against our wall clock, within 5% or 10 us; the smallest times
within 8% (LoadGen's: or 10 us).A round does not count if an involuntary switch fell into more than 20% of the 20 ms
windows on either side, or some task waited for a core in more than 20% of our time (PSI); after twice as many rounds
as wanted the row is skipped, and only the smallest times are judged. LoadGen comes with pip install -e '.[oracles]'.

`trials` (half an hour for 60 on a quiet machine): `edgekd measure --quick` of a network against itself, and against
itself with a counted amount of work more in every call: 5%, 2% of the CPU time of a call, calibrated once. The kinds
take turns.

`agreement`: the same measurement by ssh to this machine and without, in turns; within 5%. It starts an sshd of its own.

`coverage`: the intervals and verdicts on invented measurements whose truth is known.

A row or trial is written to the results when it is done and not made again, but for rows that were skipped or made
under other conditions (rounds, seconds, core).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import latency_coverage
import numpy as np
from latency_engines import REQUEST_MS, WORK
from latency_figures import share
from latency_networks import SHAPES, write_network
from latency_others import MissingError, benchmark_app, loadgen

from edgekd.bench import statistics
from edgekd.bench.loop import SETTLE_BELOW_NS, VISIT_NS
from edgekd.bench.machine import environment
from edgekd.bench.measure import Subject, measure_rows, save_arrays
from edgekd.bench.rows import Measured
from edgekd.bench.settings import BenchSettings
from edgekd.bench.targets.local import Local
from edgekd.bench.targets.protocol import Place
from edgekd.files import write_atomic
from edgekd.runtimes.protocol import noise
from edgekd.runtimes.registry import runtime

HERE = Path(__file__).resolve().parent
OUT = HERE / "results" / "latency_oracles.json"
PACKAGES = ("openvino", "onnxruntime", "mlcommons-loadgen", "numpy")
BARS = {"request": 0.03, "wall": 0.05, "wall_us": 10.0, "smallest": 0.08, "disturbed": 0.2, "agreement": 0.05}
ORACLES = (("benchmark_app", "openvino"), ("loadgen", "openvino"), ("loadgen", "onnxruntime"))
KINDS = {"A/A": 0.0, "+5%": 0.05, "+2%": 0.02}
TRIAL = ("100 us", "onnxruntime")

Side = dict[str, Any]


def built(work: Path, network: str, engine: str) -> Path:
    """The build of a network, made once."""
    folder = work / f"{network.replace(' ', '_')}.{engine}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            made = Path(scratch) / "build"
            made.mkdir()
            onnx = write_network(network, Path(scratch) / "network.onnx")
            runtime(engine).compile(onnx, made, device="CPU", threads=1, options={})
            made.rename(folder)
    return next(folder / name for name in ("model.xml", "model.onnx") if (folder / name).exists())


def one_launch(
    place: Place, build: Path, engines: list[str], args: argparse.Namespace, number: int
) -> dict[str, Measured]:
    """One launch of the agent on one build, through each of the engines, interleaved."""
    feeds = noise(runtime(engines[0]).load(build, device="CPU", threads=1).inputs)
    settings = BenchSettings(min_time_s=args.seconds * len(engines), quiet_wait_s=args.quiet_wait)
    pushed = place.push_build(build, "model")
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        save_arrays(Path(name) / "feeds.npz", feeds)
        job = {
            "mode": "latency",
            "models": [{"name": e, "runtime": e, "device": "CPU", "threads": 1, "path": pushed} for e in engines],
            "feeds": place.push(Path(name) / "feeds.npz", "feeds.npz"),
            "cpu": args.cpu,
            "seed": 0,
            "launch": number,
            "samples": place.where("samples.npz"),
            **asdict(settings.effort()),
        }
        left = Path(name) / "samples.npz"
        result = place.run(job, limit_s=600, progress=lambda line: None, leaves={"samples.npz": left})
        found = {engine: Measured(engine, "CPU") for engine in engines}
        with np.load(left) as stored:
            for engine, one in found.items():
                prefix = f"{result['models'][engine]['index']}/"
                one.add(result, {key[len(prefix) :]: stored[key] for key in stored.files if key.startswith(prefix)})
    return found


def our_side(one: Measured) -> Side:
    """What edgekd says of one launch."""
    p50 = statistics.percentiles(one.launches, seed=0)["p50"]
    (launch,) = one.launches
    assert p50 is not None
    windows = launch.disturbed_visits()
    waited = [note["pressure_percent"] for note in one.results[0]["monitor"]]
    return {
        "n": launch.wall_ns.size,
        "p50_ms": p50.value,
        "min_ms": int(launch.wall_ns.min()) / 1e6,
        "pressure": None if None in waited else round(median(waited) / 100, 4),
        "disturbed": None if windows is None else round(float(windows.mean()), 4),
    }


def their_side(said: Side) -> Side:
    """An oracle's figures; its switches, loading included, spread over 20 ms windows."""
    windows = said["process_s"] * 1e9 / VISIT_NS
    return {**said, "disturbed": round(min(1.0, said["switches"] / windows), 4)}


def asked(one: Measured, build: Path) -> Side:
    """What OpenVINO's own clock said of exactly the calls that our loop recorded."""
    ms = np.load(build.with_name(REQUEST_MS))
    visits, calls = one.launches[0].wall_ns.shape
    unrecorded = 1 if float(np.median(one.launches[0].wall_ns)) < SETTLE_BELOW_NS else 0
    taken = ms[-visits * (calls + unrecorded) :].reshape(visits, -1)[:, unrecorded:]
    return {"p50_ms": float(np.median(taken)), "min_ms": float(taken.min())}


def against_benchmark_app(place: Place, build: Path, args: argparse.Namespace, number: int) -> Side:
    found = one_launch(place, build, ["openvino", "latency_engines:Asking"], args, number)
    return {
        "ours": our_side(found["openvino"]),
        "request": asked(found["latency_engines:Asking"], build),
        "theirs": their_side(benchmark_app(build, seconds=args.seconds, cpu=args.cpu)),
    }


def against_loadgen(place: Place, build: Path, args: argparse.Namespace, number: int, engine: str) -> Side:
    theirs = their_side(loadgen(engine, build, seconds=args.seconds, cpu=args.cpu))
    return {"ours": our_side(one_launch(place, build, [engine], args, number)[engine]), "theirs": theirs}


def disturbed(pair: Side) -> bool:
    """By switches on either side, or by the share of time in which some task waited for a core: those who wait make
    calls slower on the other core too, where no switch tells of it."""
    shares = [pair[side].get(key) or 0.0 for side in ("ours", "theirs") for key in ("disturbed", "pressure")]
    return max(shares) > BARS["disturbed"]


def in_turns(take: Callable[[int], Side], rounds: int) -> list[Side]:
    """Pairs until `rounds` of them were undisturbed, at most twice as many."""
    pairs: list[Side] = []
    while len(pairs) < 2 * rounds and sum(not disturbed(pair) for pair in pairs) < rounds:
        pairs.append(take(len(pairs)))
        state = "disturbed" if disturbed(pairs[-1]) else "quiet"
        print(*(f"{side} {pairs[-1][side]['p50_ms'] * 1e3:.2f} us" for side in ("ours", "theirs")), state, flush=True)
    return pairs


def judge(pairs: list[Side], rounds: int) -> dict[str, Any]:
    """Medians of the undisturbed rounds and whether they keep the bars; with too few of them only the smallest do."""
    quiet = [pair for pair in pairs if not disturbed(pair)]
    row: dict[str, Any] = {"rounds": len(pairs), "undisturbed": len(quiet), "pairs": pairs}
    first = "request" if "request" in pairs[0] else "ours"
    ours, theirs = (min(pair[side]["min_ms"] for pair in pairs) for side in (first, "theirs"))
    # LoadGen's way to the call and back is Python: its smallest time is given what its p50 is.
    spare_ms = BARS["wall_us"] / 1e3 if "call" in pairs[0]["theirs"] else 0.0
    row["smallest"] = {
        "ratio": round(ours / theirs, 4),
        "within": abs(ours - theirs) <= max(BARS["smallest"] * theirs, spare_ms),
    }
    if len(quiet) < rounds:
        reason = f"more than {BARS['disturbed']:.0%} disturbed in {len(pairs) - len(quiet)} of {len(pairs)} rounds"
        return {**row, "verdict": "skipped", "reason": reason}
    p50 = {side: median(pair[side]["p50_ms"] for pair in quiet) for side in quiet[0]}
    row["p50_ms"] = {side: round(value, 6) for side, value in p50.items()}
    if "call" in quiet[0]["theirs"]:
        row["p50_ms"]["call"] = round(median(pair["theirs"]["call"]["p50_ms"] for pair in quiet), 6)
    apart_us = 1e3 * abs(p50["ours"] - p50["theirs"])
    row["wall"] = {
        "ratio": round(p50["ours"] / p50["theirs"], 4),
        "apart_us": round(apart_us, 3),
        "within": apart_us <= max(BARS["wall"] * 1e3 * p50["theirs"], BARS["wall_us"]),
    }
    if "request" in p50:
        ratio = p50["request"] / p50["theirs"]
        row["request"] = {"ratio": round(ratio, 4), "within": abs(ratio - 1) <= BARS["request"]}
    kept = all(row[bar]["within"] for bar in ("wall", "request", "smallest") if bar in row)
    return {**row, "verdict": "within" if kept else "off"}


def conditions(args: argparse.Namespace) -> dict[str, Any]:
    return {"wanted_rounds": args.rounds, "seconds": args.seconds, "cpu": args.cpu}


def done(row: dict[str, Any] | None, args: argparse.Namespace) -> bool:
    """Whether a row was judged under the same conditions."""
    return row is not None and row["verdict"] != "skipped" and conditions(args).items() <= row.items()


def run_oracles(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """A row for every network, oracle and engine."""
    with Local().open([]) as place:
        for network in args.networks:
            for oracle, engine in ORACLES:
                name = f"{network}, {oracle}, {engine}"
                if done(document["oracles"].get(name), args):
                    continue
                print(name, flush=True)
                build = built(args.work, network, engine)

                def take(number: int, build: Path = build, oracle: str = oracle, engine: str = engine) -> Side:
                    if oracle == "benchmark_app":
                        return against_benchmark_app(place, build, args, number)
                    return against_loadgen(place, build, args, number, engine)

                try:
                    row = judge(in_turns(take, args.rounds), args.rounds)
                except MissingError as error:
                    row = {"verdict": "skipped", "reason": str(error)}
                document["oracles"][name] = {**row, **conditions(args)}
                print(f"  {row['verdict']} {row.get('reason', '')}", flush=True)
                save(args, document)


def calibrated(args: argparse.Namespace, document: dict[str, Any], build: Path, engine: str) -> dict[str, Any]:
    """How many units of work each kind adds, from the CPU time of a call and of a unit; three processes, medians."""
    if "calibration" not in document["trials"]:
        command = [sys.executable, str(HERE / "latency_engines.py"), engine, str(build)]
        ran = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(3)]
        call_ns, unit_ns = (median(one[key] for one in ran) for key in ("call_ns", "unit_ns"))
        units = {kind: round(extra * call_ns / unit_ns) for kind, extra in KINDS.items()}
        document["trials"]["calibration"] = {
            "processes": ran,
            "units": units,
            "ratio": {kind: round(1 + n * unit_ns / call_ns, 5) for kind, n in units.items()},
        }
        save(args, document)
    found: dict[str, Any] = document["trials"]["calibration"]
    return found


def one_trial(args: argparse.Namespace, build: Path, engine: str, units: int, seed: int) -> dict[str, Any]:
    """`edgekd measure --quick` of a network with `units` more work over the network without."""
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        subjects = []
        for model, extra in (("changed", units), ("base", 0)):
            path = Path(name) / model / WORK
            path.parent.mkdir()
            path.write_text(json.dumps({"runtime": engine, "path": str(build), "units": extra}))
            subjects.append(Subject(model, "local", "latency_engines:Working", "CPU", "f32", path))
        feeds = noise(runtime(engine).load(build, device="CPU", threads=1).inputs)
        settings = BenchSettings(quick=True, profile=False)
        rows = measure_rows(
            subjects, feeds, settings=settings, folder=Path(name) / "out", seed=seed, progress=lambda line: None
        )
    (pair,) = rows.comparisons
    keys = ("ratio", "ci95", "verdict", "led_by", "wall_ratio", "cpu_ratio")
    return {
        **{key: pair[key] for key in keys},
        "contended": any(row["contended"] for row in rows.latency),
    }


def run_trials(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """So many trials of each kind, the kinds in turns."""
    network, engine = TRIAL
    build = built(args.work, network, engine)
    units = calibrated(args, document, build, engine)["units"]
    for number in range(args.trials):
        for kind in KINDS:
            done = document["trials"].setdefault(kind, [])
            if len(done) > number:
                continue
            done.append(one_trial(args, build, engine, units[kind], number))
            print(kind, number, done[-1], flush=True)
            save(args, document)


def verdicts(trials: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """How many trials of a kind were judged as they should not (A/A) or should, with Wilson's interval."""
    wanted = ("faster", "slower") if kind == "A/A" else ("slower",)
    ratios = [trial["ratio"] for trial in trials]
    return {
        **share(sum(trial["verdict"] in wanted for trial in trials), len(trials)),
        "mean": mean(ratios),
        "sd": stdev(ratios) if len(ratios) > 1 else None,
        "contended": sum(trial["contended"] for trial in trials),
    }


@contextlib.contextmanager
def loopback(work: Path) -> Iterator[Place]:
    """This machine by ssh, through a server of its own."""
    from edgekd.bench.targets.address import parse_address
    from edgekd.bench.targets.ssh import SshTarget

    sys.path.insert(0, str(HERE.parent / "tests"))
    import ssh_server

    if ssh_server.SSHD is None:
        raise MissingError(ssh_server.MISSING)
    with tempfile.TemporaryDirectory(dir=work) as name:
        server = ssh_server.Server(Path(name) / "server")
        try:
            target = SshTarget(parse_address(server.url), config=server.config, pythons=("device-python",))
            with target.open(["onnxruntime"]) as place:
                yield place
        finally:
            server.stop()


def run_agreement(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """One row: ssh to loopback against local."""
    network, engine = TRIAL
    if done(document.get("agreement"), args):
        return
    build = built(args.work, network, engine)
    try:
        with Local().open([]) as here, loopback(args.work) as there:

            def take(number: int) -> Side:
                ours, theirs = (
                    our_side(one_launch(place, build, [engine], args, number)[engine]) for place in (there, here)
                )
                return {"ours": ours, "theirs": theirs}

            row = judge(in_turns(take, args.rounds), args.rounds)
    except MissingError as error:
        row = {"verdict": "skipped", "reason": str(error)}
    if "wall" in row:  # here 10 us are no excuse
        kept = abs(row["wall"]["ratio"] - 1) <= BARS["agreement"]
        row["wall"]["within"], row["verdict"] = kept, "within" if kept and row["smallest"]["within"] else "off"
    document["agreement"] = {"network": network, "engine": engine, **row, **conditions(args)}
    print(row["verdict"], row.get("reason", ""))
    save(args, document)


def run_coverage(args: argparse.Namespace, document: dict[str, Any]) -> None:
    for name in latency_coverage.KINDS:
        if document["coverage"].get(name, {}).get("experiments") != args.experiments:
            document["coverage"][name] = latency_coverage.simulate(name, args.experiments)
            print(name, document["coverage"][name], flush=True)
            save(args, document)


def save(args: argparse.Namespace, document: dict[str, Any]) -> None:
    document["environment"] = environment(PACKAGES)
    write_atomic(args.json, json.dumps(document, indent=1) + "\n")


def show(args: argparse.Namespace, document: dict[str, Any]) -> None:
    """Markdown for docs/results.md."""
    print(
        "| network, oracle, engine | edgekd p50, us | oracle p50, us | wall | OpenVINO's clock | smallest | verdict |"
    )
    print("|---|---:|---:|---:|---:|---:|---|")
    rows = {**document["oracles"]}
    if "agreement" in document:
        rows["ssh to loopback over local"] = document["agreement"]
    for name, row in rows.items():
        p50 = [f"{1e3 * row['p50_ms'][side]:.2f}" if "p50_ms" in row else "" for side in ("ours", "theirs")]
        ratios = [f"{row[bar]['ratio']:.3f}" if bar in row else "" for bar in ("wall", "request", "smallest")]
        print("|", " | ".join([name, *p50, *ratios, f"{row['verdict']} {row.get('reason', '')}".strip()]), "|")
    print("\n| change | calibrated | measured, mean (sd) | judged different | Wilson 95% | contended |")
    print("|---|---:|---:|---:|---:|---:|")
    for kind in [kind for kind in KINDS if document["trials"].get(kind)]:
        found = verdicts(document["trials"][kind], kind)
        sd = "" if found["sd"] is None else f" ({found['sd']:.4f})"
        low, high = found["ci95"]
        calibrated_ratio = document["trials"]["calibration"]["ratio"][kind]
        print(
            f"| {kind} | {calibrated_ratio:.4f} | {found['mean']:.4f}{sd} | {found['found']} of {found['n']} | "
            f"{low:.2f} to {high:.2f} | {found['contended']} |"
        )
    print(
        "\n| invented noise | p50's interval covers | ratio's interval covers | 1.00 judged different | 1.02 | 1.05 |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, found in document["coverage"].items():
        covers = mean(row["covered"]["share"] for row in found["ratios"])
        judged = [
            sum(row["verdicts"].get(word, 0) for word in ("faster", "slower")) / found["experiments"]
            for row in found["ratios"]
        ]
        figures = [found["p50_covered"]["share"], covers, *judged]
        print("|", " | ".join([name, *(f"{100 * figure:.1f}%" for figure in figures)]), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = {
        "oracles": run_oracles,
        "trials": run_trials,
        "agreement": run_agreement,
        "coverage": run_coverage,
        "table": show,
    }
    parser.add_argument("step", choices=steps)
    parser.add_argument("--networks", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of measuring, each side and round")
    parser.add_argument("--quiet-wait", type=float, default=10.0, help="seconds to wait for quiet before a launch")
    parser.add_argument("--trials", type=int, default=20, help="of each kind")
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the core of both sides")
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "latency_oracles")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])  # for the agent
    document: dict[str, Any] = {"bars": BARS, "oracles": {}, "trials": {}, "coverage": {}}
    if args.json.exists():
        document |= json.loads(args.json.read_text())
    steps[args.step](args, document)


if __name__ == "__main__":
    main()
