"""The content-addressed store: what was built once is never built again, and never served half or changed."""

from edgekd.store.artifact import Artifact, Draft
from edgekd.store.place import StorePlace
from edgekd.store.store import Store

__all__ = ["Artifact", "Draft", "Store", "StorePlace"]
