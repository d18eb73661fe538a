"""manifest.json: what every file of a run is made of, by sha256, from the teacher to the engine (torch-free).

Its own digest covers its exact text. A stage's key is the sha256 of `made_of`, which holds settings, seed, sources,
packages, data and the digests of the stage's inputs: who has the manifest can follow a build back to its data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.files import sha256_bytes, sha256_file, write_atomic
from edgekd.pipeline.assemble import ARTIFACTS
from edgekd.pipeline.keys import weights_name
from edgekd.pipeline.schema import Pipeline, networks_of
from edgekd.report.draw import DRAWN
from edgekd.report.lineage import MANIFEST
from edgekd.store import Artifact
from edgekd.store.remote import without_secrets

if TYPE_CHECKING:
    from edgekd.pipeline.runner import Outcome

MODEL_CARD = "model_card.md"
SCHEMA_VERSION = 2
_TRAINED = ("model", "teacher", "distill", "quantize")


def places(stage: str, artifact: Artifact, named: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of an artefact's files, and where each is delivered below the folder of artefacts."""
    for name in artifact.files:
        if stage in _TRAINED:
            role = named[stage]
            yield name, f"{role}.safetensors" if name.startswith("weights") else f"{role}.{name}"
        elif stage in ("export", "evaluate"):
            yield name, name
        elif stage == "compile":
            yield name, f"builds/{name}"
        elif stage == "bench":
            yield name, f"latency/{name}"


def delivered(done: Mapping[str, Artifact], named: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Every delivered file by its path: sha256, bytes, the stage that made it, and the files it was made from."""
    found = {}
    for stage, artifact in done.items():
        for name, target in places(stage, artifact, named):
            found[f"{ARTIFACTS}/{target}"] = {
                "sha256": artifact.files[name],
                "bytes": artifact.path(name).stat().st_size,
                "stage": stage,
                "key": artifact.key,
                "made_from": [f"{ARTIFACTS}/{source}" for source in _sources(stage, name, done, named)],
            }
    return dict(sorted(found.items()))


def lineage(path: str, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A file and, behind it, all that it was made from, nearest first."""
    chain = [path]
    for place in chain:
        chain += [source for source in files[place]["made_from"] if source in files and source not in chain]
    return chain


def manifest_of(
    pipeline: Pipeline, outcome: Outcome, document: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """All that a manifest says but the digests of the report, which shows some of it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "edgekd_version": document["edgekd_version"],
        "run_id": document["run_id"],
        "created": document["created"],
        "status": document["status"],
        "command": ["edgekd", *_shown(sys.argv[1:])],
        "pipeline": {"name": pipeline.settings.name, "file": pipeline.path.name, "sha256": pipeline.tree.sha256},
        "git": document["git"],
        "seed": pipeline.settings.seed,
        "environment": document["environment"],
        "data": document["data"]
        and {
            **document["data"],
            "files": outcome.data_files,
            "learned_from": outcome.learned_from,
        },
        "preprocessing": outcome.done["export"].facts["preprocessing"] if "export" in outcome.done else None,
        "weights": _weights(pipeline, outcome.made_of),
        "stages": [
            {
                "name": name,
                "key": artifact.key,
                "digest": artifact.digest,
                "created": artifact.record.get("created"),
                "made_of": outcome.made_of[name],
            }
            for name, artifact in outcome.done.items()
        ],
        "files": files,
    }


def write_manifest(out: Path, manifest: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Write manifest.json, the last file of a run: it has the digests of all others, of the pipeline file as it ran."""
    documents = {
        name: {"sha256": sha256_file(out / name), "bytes": (out / name).stat().st_size} for name in (*DRAWN, MODEL_CARD)
    }
    if pipeline.base == out.resolve():
        documents[pipeline.path.resolve().name] = {"sha256": pipeline.tree.sha256, "bytes": len(pipeline.tree.content)}
    write_atomic(out / MANIFEST, manifest_text({**manifest, "documents": documents}))


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, with the digest of the text without it at the end."""
    body = {name: value for name, value in manifest.items() if name != "sha256"}
    return json.dumps({**body, "sha256": sha256_bytes(json.dumps(body, indent=1).encode())}, indent=1) + "\n"


def _sources(stage: str, name: str, done: Mapping[str, Artifact], named: Mapping[str, str]) -> Iterator[str]:
    """Which delivered files one of a stage's files was made from, straight."""
    networks = {named[earlier]: earlier for earlier in _TRAINED if earlier in done}
    if stage in ("distill", "quantize"):
        before = _TRAINED[: _TRAINED.index(stage)]
        yield from (f"{named[earlier]}.safetensors" for earlier in before if earlier in done)
    elif stage == "export":
        role = done["export"].facts["files"].get(name, {}).get("model")
        yield from (f"{given}.safetensors" for given in networks if given == role)
    elif stage == "compile":
        folder = name.partition("/")[0]
        build = next((build for build in done["compile"].facts["builds"] if build["folder"] == folder), None)
        files = done["export"].facts["files"].items()
        if build is not None:
            wanted = (build["model"], build["origin"])
            yield from (file for file, facts in files if (facts["model"], facts["flavour"]) == wanted)
    elif stage == "bench":
        target = name.partition("/")[0]
        builds = [build for build in done["compile"].facts["builds"] if build["target"] == target]
        yield from (f"builds/{build['folder']}/{build['file']}" for build in builds)


def _weights(pipeline: Pipeline, made_of: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Weights that the stages of this run start from, with the sha256 that each had when its stage was looked up."""
    found = {
        network.weights: made_of[entry.name].get(weights_name(place))
        for entry in pipeline.stages
        for place, network in networks_of(entry).items()
        if network.weights and entry.name in made_of
    }
    return {name: digest for name, digest in sorted(found.items()) if digest is not None}


def _shown(words: Sequence[str]) -> list[str]:
    """The command line without what nobody should read in it."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        if before == "--remote-store":
            shown.append(without_secrets(word))
        elif name == "--remote-store" and equals:
            shown.append(f"{name}={without_secrets(value)}")
        else:
            shown.append(word)
    return shown
