"""python predict.py IMAGE..: classes of images, by the model beside this file. Needs numpy, Pillow and the engine."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def prepare(path, how):
    """One image file as the model takes it, a batch of one; `how` is its input in model.json."""
    with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        behind = Image.new("RGBA", image.size, (*[how["background"]] * 3, 255))
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    image = image.convert("L" if how["channels"] == "grey" else "RGB")
    by = how["resize"] or {"fit": "stretch", "filter": "bilinear"}
    to = how["shape"][1::-1] if how["layout"] == "NHWC" else how["shape"][:0:-1], Image.Resampling[by["filter"].upper()]
    fits = {"pad": ImageOps.pad, "crop": lambda *to: ImageOps.fit(*to, (1 - by["crop"]) / 2)}
    pixels = np.atleast_3d(np.asarray(fits.get(by["fit"], Image.Image.resize)(image, *to)))
    x = pixels.astype(np.float32) * np.float32(how["pixels"][1] / 255 * how["scale"])
    x = ((x - np.float32(how["mean"])) / np.float32(how["std"])).transpose(2, 0, 1)[None]
    return pixels[None] if how["normalized_by"] == "the file" else x


def open_model(path, card):
    """A function from named inputs to outputs."""
    if card["runtime"] == "openvino":
        import openvino

        model = openvino.Core().compile_model(path, card["device"], {"INFERENCE_PRECISION_HINT": card["hint"]})
        return lambda feeds: {port.any_name: value for port, value in model(feeds).items()}
    if card["runtime"] == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.x64quantprecision", "1")  # no sums that saturate on older processors
        session = onnxruntime.InferenceSession(path, options, providers=[card["device"]])
        return lambda feeds: dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
    raise SystemExit("error: engines of TensorRT are run by trtexec, or by edgekd predict")


def answers(logits, labels, most=5):
    """The likeliest classes of one row of logits with their probabilities, the likeliest first."""
    odds = np.exp(logits - logits.max())
    return [(labels[i] if labels else str(i), float(odds[i] / odds.sum())) for i in np.argsort(-odds)[:most]]


if __name__ == "__main__":
    card = json.loads(Path(__file__).with_name("model.json").read_text())
    ask, ((name, how),) = open_model(str(Path(__file__).with_name(card["file"])), card), card["inputs"].items()
    for path in sys.argv[1:]:
        for output, values in ask({name: prepare(path, how)}).items():
            known = answers(values[0], card["labels"].get(output)) if output in card["classes"] else ()
            print(path, output, *([f"{label} {share:.4f}" for label, share in known] or values[0]))
