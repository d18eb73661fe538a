"""What `ssh` says when it cannot connect, in words: what is wrong, the fingerprint, the command that mends it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekd.bench.targets.address import Address
from edgekd.errors import EdgekdError, TryAgainError, UnavailableError

_KEYSCAN_S = 10


def explain(address: Address, said: str, config: Path | None) -> EdgekdError:
    """The error behind the text that `ssh` left on standard error."""
    if "IDENTIFICATION HAS CHANGED" in said or ("host key for" in said and "has changed" in said):
        return _changed(address, said, config)
    if "Host key verification failed" in said or "host key is known" in said:
        return _unknown(address, said, config)
    if "Permission denied" in said or "Too many authentication failures" in said:
        return UnavailableError(
            f"{address} refused the login: {_last(said)}",
            hint=f"put your public key on the device: {_command(address, None, 'ssh-copy-id')}",
        )
    if "Bad configuration option" in said or "Can't open user config file" in said:
        return UnavailableError(f"ssh refuses its configuration: {_last(said)}", hint="mend that file")
    return TryAgainError(
        f"{address} cannot be reached: {_last(said)}", hint="see that the device is on and connected, then try again"
    )


def lost(address: Address, said: str = "") -> TryAgainError:
    """The connection broke while we worked."""
    why = f": {_last(said)}" if said.strip() else ""
    return TryAgainError(
        f"the connection to {address} was lost{why}", hint="see that the device is on and connected, then try again"
    )


def _unknown(address: Address, said: str, config: Path | None) -> UnavailableError:
    found = re.search(r"No (\S+) host key is known", said)
    fingerprint = _scan(address, found.group(1) if found else "", config)
    shown = f": it shows {fingerprint}" if fingerprint else ""
    accept = _command(address, config, "ssh", "-o", "StrictHostKeyChecking=ask", end="true")
    return UnavailableError(
        f"the host key of {address} is unknown{shown}",
        hint=f"compare: `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the device; then accept it: {accept}",
    )


def _changed(address: Address, said: str, config: Path | None) -> UnavailableError:
    found = re.search(r"SHA256:\S+", said)
    shown = f": it shows {found.group(0).rstrip('.')}" if found else ""
    file = re.search(r"Offending \S+ key in (.+):\d+", said)
    name = f"[{address.host}]:{address.port}" if address.port not in (None, 22) else address.host
    forget = shlex.join(["ssh-keygen", *(["-f", file.group(1).strip()] if file else []), "-R", name])
    accept = _command(address, config, "ssh", "-o", "StrictHostKeyChecking=ask", end="true")
    return UnavailableError(
        f"{address} has another host key than the known one{shown}: another device, or somebody in between",
        hint=f"only if the device was set up anew: {forget} && {accept}",
    )


def _scan(address: Address, kind: str, config: Path | None) -> str | None:
    """Fingerprint of the key that a host shows; None behind a jump host or where it does not answer us directly."""
    scan = ["ssh-keyscan", "-T", "5", *(["-t", kind.lower()] if kind else []), *_real_host(address, config)]
    show = ["ssh-keygen", "-lf", "-"]
    try:
        keys = subprocess.run(scan, capture_output=True, timeout=_KEYSCAN_S, check=False).stdout
        listed = subprocess.run(show, input=keys, capture_output=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"SHA256:\S+", listed.stdout.decode("utf-8", "replace"))
    return found.group(0) + (f" ({kind})" if kind else "") if found else None


def _real_host(address: Address, config: Path | None) -> list[str]:
    """Port and host as the user's ssh configuration resolves them, for ssh-keyscan, which does not read it."""
    command = ["ssh", *(["-F", str(config)] if config else []), "-G", *address.words]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    facts = dict(line.partition(" ")[::2] for line in shown.splitlines())
    return ["-p", facts.get("port", "22"), "--", facts.get("hostname", address.host)]


def _command(address: Address, config: Path | None, *words: str, end: str | None = None) -> str:
    """A command for the user to type."""
    port = ["-p", str(address.port)] if address.port else []
    host = f"{address.user}@{address.host}" if address.user else address.host
    given: Sequence[str] = [words[0], *(["-F", str(config)] if config else []), *words[1:], *port, host]
    return shlex.join([*given, *([end] if end else [])])


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("@")]
    return lines[-1] if lines else "ssh says nothing"
