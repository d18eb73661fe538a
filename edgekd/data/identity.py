"""What decides the samples of a data set, or of one split of it, as one digest (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.data.settings import DataSettings, MeanStd
from edgekd.data.sources import SPLITS, Split
from edgekd.files import sha256_json

_VERSION = 1  # a change of what samples mean raises it


def of_data(
    settings: DataSettings,
    files: Mapping[str, str],
    identity: Mapping[str, Any],
    shares: Mapping[Split, float],
    seed: int,
    splits: Sequence[Split] = SPLITS,
) -> str:
    """Hex sha256 of everything that decides the samples, their splits and their normalisation.

    Args:
        files: digests of the files by name.
        identity: what else its reader says.
        shares: of the splits that are drawn from train.
        seed: what draws; it counts only if something is drawn.
        splits: those that are meant, if not all are.
    """
    given = settings.limit.canonical() if settings.limit else {}
    limit = {split: given.get(split) for split in splits}
    labelled = {} if settings.labelled is None else {"labelled": settings.labelled}
    drawn = any(shares.values()) or any(limit.values()) or bool(labelled)
    normalize = settings.normalize.canonical() if isinstance(settings.normalize, MeanStd) else settings.normalize
    return sha256_json(
        {
            "version": _VERSION,
            "source": settings.source,
            "files": files,
            "identity": identity,
            "shares": shares,
            "limit": limit,
            "normalize": normalize,
            "classes": settings.classes,
            "seed": seed if drawn else None,
            **labelled,
        }
    )


def of_split(
    split: Split,
    settings: DataSettings,
    files: Mapping[str, str],
    identity: Mapping[str, Any],
    shares: Mapping[Split, float],
    seed: int,
) -> str:
    """The same of one split: `files` are those that it is read from, and `identity` is without what images become."""
    taken = dict(shares) if split == "train" or split in shares else {}
    limit = getattr(settings.limit, split) if settings.limit else None
    return sha256_json(
        {
            "version": _VERSION,
            "source": settings.source,
            "files": files,
            "identity": identity,
            "shares": taken,
            "limit": limit,
            "seed": seed if limit or any(taken.values()) else None,
        }
    )
