"""Addresses of devices: ssh://user@host:port, or a name that stands for one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgekd.errors import ConfigError

_FORM = "write ssh://user@host or ssh://user@host:port"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.%-]*")
_HOST = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]*")


@dataclass(frozen=True)
class Address:
    """A host with, where they are given, user and port; what is left out the ssh configuration of the user decides."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"ssh://{user}{host}{f':{self.port}' if self.port else ''}"

    @property
    def words(self) -> list[str]:
        """Arguments of `ssh` that name it."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.host]


def parse_address(text: str) -> Address:
    """Read ssh://user@host:port.

    Raises:
        ConfigError: it is none; a password, a path or an option in it is refused.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{text}: is no address of a device: {error}", hint=_FORM) from None
    if parts.scheme != "ssh" or not parts.hostname:
        raise ConfigError(f"{text}: is no address of a device", hint=_FORM)
    if parts.password is not None:
        bare = str(Address(parts.hostname, parts.username, port))
        raise ConfigError(f"{bare}: a password stands in the address", hint="log in by a key: ssh-copy-id")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{text}: an address ends with host or port", hint=_FORM)
    # Not through urlsplit's hostname: that is in small letters, and an alias of the ssh configuration may have others.
    place = parts.netloc.rpartition("@")[2]
    host = place[1 : place.index("]")] if place.startswith("[") else place.partition(":")[0]
    if not _HOST.fullmatch(host) or not (parts.username is None or _NAME.fullmatch(parts.username)):
        raise ConfigError(f"{text}: user or host has characters that no name has", hint=_FORM)
    return Address(host, parts.username or None, port)
