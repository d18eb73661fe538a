"""The devices that a pipeline file measures on: asked once what they are, before anything runs (torch-free)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from edgekd.bench import machine
from edgekd.bench.targets.book import target_for
from edgekd.bench.targets.ssh import require
from edgekd.errors import ConfigError, UnavailableError
from edgekd.pipeline.schema import Pipeline, located


def measured_on(pipeline: Pipeline) -> dict[str, Any]:
    """What the latencies of a pipeline depend on: this machine, and the other devices of its targets by target."""
    hosts = {name: target.host for name, target in pipeline.settings.targets.items()}
    here = {"machine": machine.fingerprint() if None in hosts.values() else None}
    return here | ({"devices": probe_devices(pipeline)} if any(hosts.values()) else {})


def probe_devices(pipeline: Pipeline) -> dict[str, Mapping[str, Any]]:
    """Fingerprint, engine and numpy of the device of every target that has a `host:`.

    Raises:
        ConfigError: a name that no device has (file:line:column).
        UnavailableError: a device refuses us, or lacks Python, numpy or the engine (file:line:column).
        TryAgainError: a device cannot be reached.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for name, target in pipeline.settings.targets.items():
        if target.host is None:
            continue
        try:
            facts = _probe(target.host, target.runtime)
            require(target.host, facts)
        except (ConfigError, UnavailableError) as error:
            raise located(pipeline, ("targets", name, "host"), error) from None
        engine = {"engine": facts["engines"][target.runtime], "numpy": facts["numpy"]}
        found[name] = {"machine": facts["machine"], **engine}
    return found


@functools.cache
def _probe(host: str, runtime: str) -> dict[str, Any]:
    """Once for each process: planning, checking and running ask the same."""
    return target_for(host).probe([runtime])
