"""What lies beside a build so that it can be used as it is: model.json, which says all of it, and predict.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import ConfigError
from edgekd.export.metadata import read_metadata
from edgekd.files import write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

CARD, PREDICT = "model.json", "predict.py"
_TEMPLATE = Path(__file__).with_name(PREDICT)


def write_card(folder: Path, source: Path, engine: Mapping[str, Any]) -> None:
    """Write model.json and, for a model of one image in OpenVINO or ONNX Runtime, predict.py.

    Args:
        source: the ONNX file that the build is made of; its metadata says how inputs are prepared and answers named.
        engine: runtime, device and file of the build, and what else the engine must be told.
    """
    known = read_metadata(source)
    heads = known.get("heads", {})
    labels = {out: known["labels"][head["target"]] for out, head in heads.items() if head["target"] in known["labels"]}
    card = {
        "schema_version": 1,
        "edgekd_version": known["version"],
        "pipeline": known["pipeline"],
        "role": known["role"],
        "key": known["key"],
        **engine,
        "inputs": {name: _complete(how) for name, how in known["preprocessing"].items()},
        "outputs": heads,
        "classes": sorted(output for output, head in heads.items() if head["task"] == "classification"),
        "labels": labels,
        "accuracy": known["accuracy"],
    }
    write_atomic(folder / CARD, json.dumps(card, indent=1, sort_keys=True) + "\n")
    if takes_an_image(card) and card["runtime"] in ("openvino", "onnxruntime"):
        write_atomic(folder / PREDICT, _TEMPLATE.read_bytes())


def _complete(how: Mapping[str, Any]) -> dict[str, Any]:
    """How an input is prepared, with the usual answer where its data had no images to say it."""
    background = how.get("background")
    return {"resize": None, **how, "background": 255 if background is None else background}


def takes_an_image(card: Mapping[str, Any]) -> bool:
    """Whether the model's one input is an image whose pixels are known."""
    inputs = list(card["inputs"].values())
    return len(inputs) == 1 and bool(inputs[0].get("pixels")) and bool(inputs[0].get("channels"))


def answers(logits: NDArray[Any], labels: list[str] | None, most: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes of one row of logits with their probabilities, the likeliest first; some have no label."""
    import numpy as np

    odds = np.exp(logits - logits.max())
    named = [*(labels or ()), *map(str, range(len(labels or ()), len(odds)))]
    return [(named[i], float(odds[i] / odds.sum())) for i in np.argsort(-odds)[:most]]


def read_card(build: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the model.json of a build, given the folder or a file in it.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    folder = build if build.is_dir() else build.parent
    inside = sorted(str(path.parent) for path in (folder / "artifacts" / "builds").glob(f"*/{CARD}"))
    hint = "give a folder below artifacts/builds of a run, e.g. runs/NAME/artifacts/builds/openvino.int8"
    hint = f"that is a run; give one of its builds: {', '.join(inside)}" if inside else hint
    try:
        card = json.loads((folder / CARD).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{build}: no build of edgekd: there is no {CARD}", hint=hint) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / CARD}: cannot be read: {error}", hint="build it again") from None
    if not _is_card(card):
        raise ConfigError(f"{folder / CARD}: is damaged", hint="build it again")
    # The name of a file in the folder, and nothing else: a card may come from elsewhere.
    file = card["file"]
    if not isinstance(file, str) or Path(file).name != file or not (folder / file).is_file():
        raise ConfigError(f"{folder / CARD}: names no file beside it: {file!r}", hint="build it again")
    return folder, card


_NEEDED = {"runtime": str, "device": str, "inputs": dict, "outputs": dict, "classes": list, "labels": dict}


def _is_card(card: Any) -> bool:
    """Whether it has what a card must have, each of its kind: it may come from elsewhere."""
    if not isinstance(card, dict) or "file" not in card:
        return False
    right = all(isinstance(card.get(key), kind) for key, kind in _NEEDED.items())
    return right and all(isinstance(how, dict) for key in ("inputs", "outputs") for how in card[key].values())
