"""The contact sheet of `edgekd data check --html`: one page, without scripts, that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from edgekd.data.findings import Survey, Thumbnail
from edgekd.report.page import template

LARGEST_BYTES = 1_000_000
_MOST_ROWS = 50
_LONGEST_NAME = 200


def contact_sheet(found: Survey, title: str) -> str:
    """What was found as one HTML page of at most `LARGEST_BYTES`: as many thumbnails as fit."""
    sheet = template("contact_sheet.html.j2")
    shown = found.thumbnails
    while True:
        page = sheet.render(
            **_context(found, title), groups=_groups(shown), left_out=len(found.thumbnails) - len(shown)
        )
        encoded = page.encode("utf-8", "backslashreplace")
        if len(encoded) <= LARGEST_BYTES or not shown:
            return encoded.decode()
        shown = shown[: len(shown) * 3 // 4]


def _context(found: Survey, title: str) -> dict[str, Any]:
    broken = [(split, row.name, row.why) for split, rows in found.broken.items() for row in rows]
    classes = [
        (split, target, name, n)
        for split, targets in found.classes.items()
        for target, counts in targets.items()
        for name, n in counts.items()
    ]
    most = max((n for *_, n in classes), default=1)
    return {
        "title": title[-_LONGEST_NAME:],
        "found": found,
        "samples": sum(found.samples.values()),
        "notes": [note[: 4 * _LONGEST_NAME] for note in found.notes],
        "problems": [message[: 4 * _LONGEST_NAME] for message, _ in found.problems],
        "classes": [(split, name[:_LONGEST_NAME], n, round(100 * n / max(1, most))) for split, _, name, n in classes][
            : 4 * _MOST_ROWS
        ],
        "more_classes": max(0, len(classes) - 4 * _MOST_ROWS),
        "broken": [(split, name[-_LONGEST_NAME:], why) for split, name, why in broken[:_MOST_ROWS]],
        "more_broken": max(0, len(broken) - _MOST_ROWS),
        "facts": [
            (name, ", ".join(f"{n} {_size(value)}" for value, n in counts.most_common(8)))
            for name, counts in found.pictures.items()
            if counts
        ],
    }


def _groups(thumbnails: Sequence[Thumbnail]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Thumbnails by split and class: names, and images as data."""
    found: dict[str, list[tuple[str, str]]] = {}
    for one in thumbnails:
        data = base64.b64encode(one.jpeg).decode()
        group = f"{one.split} / {one.label[:_LONGEST_NAME]}" if one.label else one.split
        found.setdefault(group, []).append((one.name[-_LONGEST_NAME:], data))
    return sorted(found.items(), key=lambda group: group[0])


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
