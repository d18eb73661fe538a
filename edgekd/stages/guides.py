"""How a frozen network's outputs are had in a training stage: looked up or live, and why (torch-free)."""

from __future__ import annotations

from edgekd.data.settings import AugmentSettings
from edgekd.train.settings import TrainSettings


def why_live(train: TrainSettings, augment: AugmentSettings | None, *, reads_features: bool) -> str | None:
    """Why a frozen network has to answer anew in every step; None when its outputs can be kept."""
    if reads_features:
        return "a knowledge reads its features"
    if augment is not None and not augment.finite:
        return "`views: all` of an augmentation that has no end of views"
    if train.teacher_cache == "off":
        return "teacher_cache is off"
    return None


def answers(train: TrainSettings, augment: AugmentSettings | None, *, reads_features: bool) -> str:
    """In words: cached, with what a sample's views are, or live and why."""
    reason = why_live(train, augment, reads_features=reads_features)
    if reason is not None:
        return f"live: {reason}"
    kind = train.teacher_cache + (f", top {train.teacher_cache_top_k}" if train.teacher_cache_top_k else "")
    kind += f", up to {train.teacher_cache_bytes / 1e9:.3g} GB"
    if augment is None:
        return f"cached ({kind}): one view of each sample"
    seeded = "" if augment.geometric else "seeded "
    return f"cached ({kind}): {augment.per_sample} {seeded}views of each sample"
