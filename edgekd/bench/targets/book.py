"""Names for devices: a small file in the user's configuration folder, and the target behind a name or an address."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd.bench.targets.address import Address, parse_address
from edgekd.bench.targets.ssh import SshTarget
from edgekd.errors import ConfigError
from edgekd.files import write_atomic

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Device:
    """A named device; `python` is the interpreter there, None leaves it to the probe."""

    address: Address
    python: str | None = None


def book_path() -> Path:
    """The file of names: $EDGEKD_TARGETS, else edgekd/targets.json in the user's configuration folder."""
    given = os.environ.get("EDGEKD_TARGETS")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "edgekd" / "targets.json"


def read_book(path: Path) -> dict[str, Device]:
    """Devices by name; none where there is no file yet.

    Raises:
        ConfigError: the file cannot be read or is not one of ours.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Device(parse_address(row["host"]), row.get("python")) for name, row in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is no list of devices: {error}", hint="mend it, or remove it and add the devices again"
        ) from None


def add_device(path: Path, name: str, device: Device) -> None:
    """Write a device under a name; one that is there already is replaced."""
    if not _NAME.fullmatch(name) or name == "local":
        raise ConfigError(
            f"{name!r} cannot name a device",
            hint="use at most 64 letters, digits, `_`, `-` and `.`; `local` is this one",
        )
    devices: Mapping[str, Device] = {**read_book(path), name: device}
    rows = {name: {"host": str(one.address), "python": one.python} for name, one in sorted(devices.items())}
    write_atomic(path, json.dumps(rows, indent=1) + "\n")


def target_for(host: str, book: Path | None = None) -> SshTarget:
    """The device behind ssh://user@host:port, or behind a name in the file `book` (by default the user's).

    Raises:
        ConfigError: it is neither.
    """
    config = os.environ.get("EDGEKD_SSH_CONFIG")
    own = Path(config) if config else None
    if "://" in host:
        return SshTarget(parse_address(host), config=own)
    devices = read_book(book or book_path())
    if host not in devices:
        from edgekd.config.settings import did_you_mean

        hint = did_you_mean(host, devices) if devices else f"edgekd target add {host} ssh://user@host"
        raise ConfigError(f"no device is called {host!r}", hint=hint)
    return SshTarget(devices[host].address, python=devices[host].python, config=own)
