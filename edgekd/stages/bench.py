"""bench: latency of every build of a target, interleaved, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable

from edgekd.bench.measure import Subject, measure_rows
from edgekd.bench.targets.book import target_for
from edgekd.runtimes.protocol import TensorInfo, noise
from edgekd.stages.context import Context
from edgekd.stages.settings import BenchStage

_TOLD = ("launch", "throughput", "load", "long run")


def run(context: Context) -> None:
    """Measure target by target; rows and comparisons in report.json's form are the facts."""
    options = context.options(BenchStage)
    compiled = context.inputs["compile"]
    latency, comparisons, throughput, load = [], [], [], []
    for target in context.common.targets:
        # The quantized build first: comparisons then speak of it, held against the others.
        builds = [b for b in reversed(compiled.facts["builds"]) if b["target"] == target]
        subjects = [
            Subject(
                model=b["model"],
                target=target,
                runtime=b["runtime"],
                device=b["device"],
                precision=b["precision"],
                path=compiled.path(f"{b['folder']}/{b['file']}"),
                threads=options.threads,
            )
            for b in builds
        ]
        # Networks may take different inputs of the data; each build is fed those that it names.
        inputs = {info["name"]: TensorInfo(**info) for build in builds for info in build["inputs"]}
        feeds = noise(inputs.values(), options.batch, context.common.seed)
        host = context.common.targets[target].host
        folder = context.draft.folder / target
        folder.mkdir()
        rows = measure_rows(
            subjects,
            feeds,
            settings=options,
            folder=folder,
            seed=context.common.seed,
            progress=_teller(context, target),
            on=target_for(host) if host else None,
            host=host,
        )
        for row in rows.latency:
            if row.get("samples_path"):
                row["samples_path"] = f"{target}/{row['samples_path']}"
        latency += rows.latency
        comparisons += [{**pair, "target": target} for pair in rows.comparisons]
        throughput += rows.throughput
        load += rows.load
    context.draft.facts.update(latency=latency, comparisons=comparisons, throughput=throughput, load=load)


def _teller(context: Context, target: str) -> Callable[[str], None]:
    """One line a launch, a load or a long run; what these do inside stays out of the log."""
    return lambda line: context.tell(f"bench: {target}  {line}") if line.startswith(_TOLD) and ":" not in line else None
