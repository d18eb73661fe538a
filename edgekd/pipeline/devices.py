"""The devices that a pipeline file works on: asked once what they are, before anything runs (torch-free).

What a device said last is remembered in the store. Of one that is off, that counts: what the store holds for it stays
good without it. Whatever has to be made or measured there needs the device itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekd.bench import machine
from edgekd.bench.pack import agent_digest
from edgekd.bench.targets.book import target_for
from edgekd.bench.targets.ssh import require
from edgekd.errors import ConfigError, TryAgainError, UnavailableError
from edgekd.files import sha256_json, write_atomic
from edgekd.pipeline.schema import Pipeline, located
from edgekd.store import Store

# Of a device's fingerprint, what a build depends on; a latency depends on all of it.
_PROCESSORS = ("cpu", "gpu", "gpu_driver", "system", "arch")


class Devices:
    """The devices of a pipeline's targets, by target. `absent`: hosts that could not be reached, and when they last
    were, in words."""

    def __init__(self, pipeline: Pipeline, store: Store) -> None:
        self._pipeline, self._path = pipeline, store.root / "devices.json"
        self._hosts = {name: t.host for name, t in pipeline.settings.targets.items() if t.host is not None}
        self._known: dict[str, Mapping[str, Any]] = {}
        self.absent: dict[str, str] = {}

    def measured_on(self) -> dict[str, Any]:
        """What latencies depend on: this machine, and the other devices of the targets by target."""
        targets = self._pipeline.settings.targets
        here = {"machine": machine.fingerprint() if len(self._hosts) < len(targets) else None}
        return here | ({"devices": {name: self._about(name) for name in self._hosts}} if self._hosts else {})

    def built_for(self, targets: Collection[str]) -> dict[str, Any]:
        """What builds depend on that are made or evaluated on the devices of these targets."""
        found: dict[str, Any] = {}
        for name in targets:
            facts = self._about(name)
            found[name] = {**facts, "machine": {key: facts["machine"][key] for key in _PROCESSORS}}
        return {"devices": found, "agent": agent_digest()} if found else {}

    def require(self, targets: Iterable[str]) -> None:
        """Have the devices of these targets answer now, and be what they were taken for.

        Raises:
            ConfigError: a name that no device has (file:line:column).
            UnavailableError: a device refuses us, or lacks Python, numpy or the engine (file:line:column).
            TryAgainError: a device cannot be reached, or is not what it last was and work was planned by that.
        """
        for name in targets:
            facts = self._ask(name, patient=True)
            self.absent.pop(self._hosts[name], None)
            if self._known.setdefault(name, facts) != facts:
                raise TryAgainError(
                    f"{self._hosts[name]} answers again, and is not what it last was", hint="run the same command again"
                )

    def notes(self) -> list[str]:
        """What to say of devices that are off."""
        return [f"{host} cannot be reached: what it was {when} counts" for host, when in self.absent.items()]

    def _about(self, name: str) -> Mapping[str, Any]:
        """Fingerprint, engine and numpy of a target's device: now, or when it was last reached."""
        if name not in self._known:
            remembered = _read(self._path).get(self._memory(name))
            try:
                self._known[name] = self._ask(name, patient=remembered is None)
            except TryAgainError:
                if remembered is None:
                    raise
                self._known[name] = remembered["facts"]
                self.absent[self._hosts[name]] = remembered["seen"]
        return self._known[name]

    def _ask(self, name: str, *, patient: bool) -> Mapping[str, Any]:
        host, runtime = self._hosts[name], self._pipeline.settings.targets[name].runtime
        memory = self._memory(name)
        try:
            answer = _probe(host, runtime, patient)
            require(host, answer)
        except UnavailableError as error:
            raise located(self._pipeline, ("targets", name, "host"), error) from None
        facts = {"machine": answer["machine"], "engine": answer["engines"][runtime], "numpy": answer["numpy"]}
        self._remember(memory, facts)
        return facts

    def _memory(self, name: str) -> str:
        """Whom it was that said so: a name may come to mean another device."""
        try:
            target = target_for(self._hosts[name])
        except ConfigError as error:
            raise located(self._pipeline, ("targets", name, "host"), error) from None
        told = [str(target.address), target.python, str(target.config), self._pipeline.settings.targets[name].runtime]
        return sha256_json(told)

    def _remember(self, memory: str, facts: Mapping[str, Any]) -> None:
        known, today = _read(self._path), f"on {time.strftime('%Y-%m-%d')}"
        if known.get(memory) != {"facts": facts, "seen": today}:
            write_atomic(self._path, json.dumps({**known, memory: {"facts": facts, "seen": today}}, indent=1))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_answers: dict[tuple[str, str], dict[str, Any]] = {}


def _probe(host: str, runtime: str, patient: bool) -> dict[str, Any]:
    """Once for each process: planning, checking and running ask the same. `patient`: tries more than once."""
    if (host, runtime) not in _answers:
        target = target_for(host)
        _answers[host, runtime] = (target if patient else replace(target, waits_s=())).probe([runtime])
    return _answers[host, runtime]


def forget() -> None:
    """Ask every device again; for tests."""
    _answers.clear()
