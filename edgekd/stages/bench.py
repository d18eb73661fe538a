"""bench: latency of every build of a target, interleaved, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable

from edgekd.bench.measure import Subject, measure
from edgekd.bench.targets.book import target_for
from edgekd.runtimes.protocol import TensorInfo, noise
from edgekd.stages.context import Context
from edgekd.stages.settings import BenchStage


def run(context: Context) -> None:
    """Measure target by target; rows and comparisons in report.json's form are the facts."""
    options = context.options(BenchStage)
    compiled = context.inputs["compile"]
    latency, comparisons = [], []
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
        rows, pairs = measure(
            subjects,
            feeds,
            settings=options,
            folder=folder,
            seed=context.common.seed,
            progress=_teller(context, target),
            on=target_for(host) if host else None,
        )
        for row in rows:
            row["host"] = host
            if row.get("samples_path"):
                row["samples_path"] = f"{target}/{row['samples_path']}"
        latency += rows
        comparisons += [{**pair, "target": target} for pair in pairs]
    context.draft.facts.update(latency=latency, comparisons=comparisons)


def _teller(context: Context, target: str) -> Callable[[str], None]:
    """One line a launch; what a launch does inside stays out of the log."""
    return lambda line: (
        context.tell(f"bench: {target}  {line}") if line.startswith("launch") and ":" not in line else None
    )
