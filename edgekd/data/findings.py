"""What a look through a data set found, in plain values and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekd.data.readers.sound import Broken
from edgekd.data.sources import Split

_EXAMPLES = 3
_IMBALANCED = 10
_MOST_COMMON = 20


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG of an image as a network sees it, before normalisation."""

    split: Split
    label: str
    name: str
    jpeg: bytes


@dataclass
class Survey:
    """What was found. Everything but thumbnails is in `document`.

    Attributes:
        kind: name of the source.
        resized: whether images are brought to one size.
        samples: of each split that the source brings, broken images included.
        classes: of each split by target and class, how many samples.
        pictures: of formats, modes and sizes (height, width) how many, and how many are turned or animated.
        channels: mean and std of pixel / 255 of each channel, over all splits.
        broken: the broken images of each split.
        others: files in folders that are not called like images.
        copies: samples with the content of an earlier one: (name, split, name and split of the earlier one).
        conflicts: those of them whose label is another.
        in_a_run: samples of each split once the shares are drawn.
        problems: what a run would refuse, each with what mends it.
    """

    kind: str
    resized: bool = False
    samples: dict[Split, int] = field(default_factory=dict)
    classes: dict[Split, dict[str, dict[str, int]]] = field(default_factory=dict)
    pictures: dict[str, Counter[Any]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    channels: dict[str, list[float]] = field(default_factory=dict)
    broken: dict[Split, list[Broken]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    copies: list[tuple[str, Split, str, Split]] = field(default_factory=list)
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    in_a_run: dict[Split, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    thumbnails: list[Thumbnail] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What a run would take, and its user should know."""
        said = []
        for split in self.classes:
            for target, ratio in self.imbalance(split).items():
                counts = self.classes[split][target]
                if ratio is None:
                    gone = [name for name, n in counts.items() if not n]
                    said.append(f"{split} has no sample of {len(gone)} classes of {target}: {_first(gone)}")
                elif ratio >= _IMBALANCED:
                    large, small = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
                    pair = f"{counts[large]} samples of {large}, {counts[small]} of {small}"
                    said.append(f"{split} is imbalanced: {pair} ({ratio:g} : 1)")
        between = self.between()
        if between:
            shown = _first([f"{name} ({split}) is {other} ({theirs})" for name, split, other, theirs in between])
            said.append(f"{_samples(len(between))} in two splits: {shown}")
        within = len(self.copies) - len(between)
        if within:
            drawn = set(self.in_a_run) - set(self.samples)
            risk = f"; {' and '.join(sorted(drawn))} is drawn and may get one of two" if drawn else ""
            said.append(f"{_samples(within)} copied inside of a split{risk}")
        if self.conflicts:
            shown = _first([f"{name} is {other}" for name, other in self.conflicts])
            said.append(f"{_samples(len(self.conflicts))} with the content of another one, but not its label: {shown}")
        if self.others:
            said.append(f"files that are not called like images: {_first(self.others)}")
        return said

    def document(self) -> dict[str, Any]:
        """Plain values: the result of `edgekd data check --json`."""
        between = self.between()
        return {
            "kind": self.kind,
            "samples": self.samples,
            "samples_in_a_run": self.in_a_run,
            "classes": self.classes,
            "imbalance": {split: self.imbalance(split) for split in self.classes},
            "inputs": self.inputs,
            "pictures": {
                name: [{"value": _plain(value), "count": n} for value, n in found.most_common(_MOST_COMMON)]
                for name, found in self.pictures.items()
            },
            "sizes": self.sizes(),
            "channels": self.channels,
            "broken": {s: [{"name": b.name, "why": b.why} for b in rows] for s, rows in self.broken.items()},
            "other_files": self.others,
            "duplicates_between_splits": [
                {"name": name, "split": split, "of": other, "of_split": theirs}
                for name, split, other, theirs in between
            ],
            "duplicates_within_splits": len(self.copies) - len(between),
            "duplicates_of_another_label": [{"name": name, "of": other} for name, other in self.conflicts],
            "notes": self.notes,
            "problems": [{"message": message, "hint": hint} for message, hint in self.problems],
        }

    def sizes(self) -> dict[str, Any]:
        """How many sizes images have, and (height, width) of the smallest, the middle and the largest by area."""
        every = sorted(self.pictures.get("size", Counter()).elements(), key=lambda size: (size[0] * size[1], size))
        if not every:
            return {}
        found = {"smallest": every[0], "middle": every[len(every) // 2], "largest": every[-1]}
        return {"count": len(self.pictures["size"]), **{name: list(size) for name, size in found.items()}}

    def between(self) -> list[tuple[str, Split, str, Split]]:
        """The copies that lie in another split than the sample of the same content."""
        return [copy for copy in self.copies if copy[1] != copy[3]]

    def imbalance(self, split: Split) -> dict[str, float | None]:
        """By target, the samples of the largest class as a multiple of those of the smallest; None if that has none."""
        found: dict[str, float | None] = {}
        for target, counts in self.classes[split].items():
            smallest = min(counts.values(), default=0)
            found[target] = round(max(counts.values()) / smallest, 3) if smallest else None
        return found


def _samples(count: int) -> str:
    return f"{count} sample{'s' if count != 1 else ''}"


def _first(words: Sequence[str]) -> str:
    more = f" and {len(words) - _EXAMPLES} more" if len(words) > _EXAMPLES else ""
    return ", ".join(words[:_EXAMPLES]) + more


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
