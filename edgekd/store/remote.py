"""A remote store through fsspec: a second level that other machines fill and read. It saves work and never fails a run.

<url>/v1/blobs/ab/abcd..         files by their sha256
<url>/v1/artifacts/ab/abcd...json   meta.json of an artefact by its key: the marker, written last

Nothing that comes from there is trusted: names must stay inside the artefact's folder, every byte is held against the
digests of the marker. The first failure that is not of a single artefact ends the use of the remote store for a run.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgekd.errors import ConfigError, UnavailableError, first_line, install_hint
from edgekd.store.artifact import Artifact, Place, meta_text, parse_meta

STALL_S = 60.0
_BLOCK = 8 << 20
# A write to these shows whole or not at all; elsewhere a file is written beside and moved.
_WHOLE_WRITES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory", "http", "https"})
_SCHEME, _URL = re.compile(r"[A-Za-z][\w+.-]*"), re.compile(r"[\w+.:-]+://[^\s'\"<>]+")
_CHAINED = re.compile(r"[\w+.-]+://.*|[a-z]+|/[^@]*")  # what may follow `::`; else it stood in a secret
T = TypeVar("T")


class _RefusedError(Exception):
    """An artefact there is not what it should be."""


class RemoteStore:
    """Artefacts at an fsspec URL. `tell` takes warnings; `stall_s` is how long no byte may move."""

    place: Place = "remote"

    def __init__(self, url: str, tell: Callable[[str], None] = lambda text: None, *, stall_s: float = STALL_S) -> None:
        """Know the file system of the URL; nothing is asked of it yet.

        Raises:
            ConfigError: fsspec knows no such protocol, or the URL makes no sense to it.
            UnavailableError: a package that the protocol needs is missing.
        """
        self.shown, self.tell, self._stall_s = without_secrets(url), tell, stall_s
        self._fs, root = _open(url, self.shown)
        self._root = f"{root.rstrip('/')}/v1"
        protocols = (self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol
        self._whole_writes = bool(_WHOLE_WRITES & {*protocols})
        self._gone = False
        self._refused: set[str] = set()
        self._moved = 0.0

    def peek(self, key: str) -> Artifact | None:
        """What the marker says of an artefact, or None."""
        return self._asked(key, lambda: self._marker(key, Path()))

    def fetch(self, key: str, folder: Path) -> Artifact | None:
        """Copy the files of an artefact, verified on their way; None where there is none, or no whole one."""

        def take() -> Artifact | None:
            artifact = self._marker(key, folder)
            for name, sha256 in artifact.files.items() if artifact is not None else ():
                self._take(sha256, folder / name, name)
            return artifact

        return self._asked(key, take)

    def push(self, artifact: Artifact, *, made: bool = True) -> bool:
        """Bring an artefact there: its files that are not there yet, then the marker. Several may do so at once.

        Args:
            made: it was made just now; what was made before is brought only if its marker is not there.

        Returns:
            Whether it was brought.
        """

        def bring() -> bool:
            if not made and self._size(self._place(artifact.key)) is not None:
                return False
            afresh = artifact.key in self._refused
            for name, sha256 in artifact.files.items():
                source, place = artifact.path(name), self._blob(sha256)
                if afresh or self._size(place) != source.stat().st_size:
                    self._put(place, partial(self._fs.put_file, str(source), callback=self._pulse()))
            text = meta_text(artifact.key, artifact.files, artifact.facts, artifact.record)
            self._put(self._place(artifact.key), lambda to: self._fs.pipe_file(to, text.encode()))
            return True

        return bool(self._asked(artifact.key, bring))

    def _marker(self, key: str, folder: Path) -> Artifact | None:
        try:
            content = self._fs.cat_file(self._place(key))
        except FileNotFoundError:
            return None
        try:
            return parse_meta(key, folder, content, self.place)
        except ValueError as error:
            raise _RefusedError(str(error)) from None

    def _take(self, sha256: str, target: Path, name: str) -> None:
        """Copy one file. Raises _RefusedError where it is not what its digest says."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        try:
            with self._fs.open(self._blob(sha256), "rb", block_size=_BLOCK) as source, target.open("wb") as copy:
                while block := source.read(_BLOCK):
                    self._moved = time.monotonic()
                    digest.update(block)
                    copy.write(block)
        except FileNotFoundError:
            raise _RefusedError(f"{name} is missing") from None
        if digest.hexdigest() != sha256:
            raise _RefusedError(f"{name} was changed")

    def _put(self, place: str, write: Callable[[str], object]) -> None:
        if self._whole_writes:
            write(place)
        else:
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            beside = f"{place}.{uuid.uuid4().hex[:12]}.part"
            write(beside)
            self._fs.mv(beside, place)
        self._moved = time.monotonic()

    def _size(self, place: str) -> int | None:
        try:
            found: int | None = self._fs.info(place)["size"]
            return found
        except FileNotFoundError:
            return None

    def _asked(self, key: str, work: Callable[[], T]) -> T | None:
        """Do something with an artefact there; a failure is told, and None comes back.

        In a thread of its own: a connection that hangs is left to itself when no byte has moved for `stall_s`.
        """
        if self._gone:
            return None
        done: list[T] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                done.append(work())
            except Exception as error:  # the packages behind fsspec raise what they like
                failed.append(error)

        self._moved = time.monotonic()
        thread = threading.Thread(target=run, name="edgekd remote store", daemon=True)
        thread.start()
        while thread.is_alive() and time.monotonic() - self._moved < self._stall_s:
            thread.join(0.02)
        if done:
            return done[0]
        if failed and isinstance(failed[0], _RefusedError):
            self._refused.add(key)
            self.tell(f"remote store {self.shown}: artefact {key[:12]} is refused: {failed[0]}; it is made here")
            return None
        self._gone = True
        why = f"{type(failed[0]).__name__}: {_said(failed[0])}" if failed else f"no answer for {self._stall_s:g} s"
        self.tell(f"remote store {self.shown}: {why}; this run goes on without it")
        return None

    def _pulse(self) -> Any:
        """An fsspec callback that notes that bytes move."""
        from fsspec.callbacks import Callback

        def moved(*_: object, **__: object) -> None:
            self._moved = time.monotonic()

        return Callback(hooks={"moved": moved})

    def _blob(self, sha256: str) -> str:
        return f"{self._root}/blobs/{sha256[:2]}/{sha256}"

    def _place(self, key: str) -> str:
        return f"{self._root}/artifacts/{key[:2]}/{key}.json"


def _open(url: str, shown: str) -> tuple[Any, str]:
    try:
        import fsspec

        fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise UnavailableError(
            f"remote store {shown}: {_said(error)}",
            hint=_package_for(url, error),
        ) from None
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(
            f"remote store {shown}: {_said(error)}", hint="write e.g. s3://bucket/folder or file:///mnt/store"
        ) from None
    return fs, str(root)


_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
}


def _package_for(url: str, error: ImportError) -> str:
    """What to install for a URL: the extra is for s3:// alone."""
    package = _PACKAGES.get(url.rpartition("::")[2].partition("://")[0])
    if package is not None and error.name != "fsspec":
        return f"pip install {package}"
    return f"{install_hint('remote', 'fsspec', 's3fs')}, or the package named there"


def without_secrets(url: str) -> str:
    """A URL for messages, of each of its parts (`filecache::https://..`): no user, no password, no query.

    Where it is not clear what is secret (no `//`, marks in a password), the scheme alone is left.
    """
    first, *more = url.split("::")
    shown = [_without_secrets(first), *(_without_secrets(part) for part in more if _CHAINED.fullmatch(part))]
    return "::".join(shown)


def _without_secrets(url: str) -> str:
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme, colon, _ = url.partition(":")
        return f"{scheme}:" if colon and _SCHEME.fullmatch(scheme) else url
    place = re.split("[?#]", rest, maxsplit=1)[0]
    left = rest[len(place) :]
    user, at, address = place.rpartition("@")
    if at and ("/" not in user or ":" in user.partition("/")[0]):  # `dir@v1` in a path is none; secrets hold slashes
        place = address
    host = place.partition("/")[0]
    odd = ":" in host and not host.rpartition(":")[2].isdigit()
    return f"{scheme}:" if odd or "@" in left else f"{scheme}://{place}"


def _said(error: BaseException) -> str:
    """The first line of an error of fsspec's packages, which like to name the URL."""
    return _URL.sub(lambda found: without_secrets(found[0]), first_line(error))
