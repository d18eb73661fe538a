"""The content-addressed store: what was built once is never built again, and never served half or changed."""

from edgekd.store.store import Artifact, Draft, Store

__all__ = ["Artifact", "Draft", "Store"]
