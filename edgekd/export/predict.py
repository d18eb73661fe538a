"""python predict.py IMAGE..: classes of images, by the model beside this file. Needs numpy, Pillow and the engine."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def prepare(path, how):  # one image file as a batch of one; `how` is the model's input in model.json
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.has_transparency_data:
            behind = Image.new("RGBA", image.size, (*[how["background"]] * 3, 255))
            image = Image.alpha_composite(behind, image.convert("RGBA"))
        image = image.convert("L" if how["channels"] == "grey" else "RGB")
    height, width = how["shape"][:2] if how["layout"] == "NHWC" else how["shape"][1:]
    pixels = np.asarray(resized(image, (width, height), how["resize"] or {})).reshape(height, width, -1)
    if how["normalized_by"] == "the file":
        return pixels[None]
    x = pixels.transpose(2, 0, 1)[None].astype(np.float32) * np.float32(how["pixels"][1] / 255 * how["scale"])
    return (x - np.float32(how["mean"]).reshape(-1, 1, 1)) / np.float32(how["std"]).reshape(-1, 1, 1)


def resized(image, size, rule):  # to width and height, as the data was that the model was made on
    resample = Image.Resampling[rule.get("filter", "bilinear").upper()]
    if rule.get("fit") == "crop":
        return ImageOps.fit(image, size, resample, (1 - rule["crop"]) / 2)
    return ImageOps.pad(image, size, resample) if rule.get("fit") == "pad" else image.resize(size, resample)


def open_model(path, card):  # a function from named inputs to the values of the outputs, in their order
    sys.modules["openvino_telemetry"], __import__("os").environ["ORT_DISABLE_TELEMETRY"] = None, "1"  # nobody reports
    if card["runtime"] == "openvino":
        core, hint = __import__("openvino").Core(), {"INFERENCE_PRECISION_HINT": card["hint"]}
        model = core.compile_model(path, card["device"], hint)
        return lambda feeds: {port.any_name: value for port, value in model(feeds).items()}
    options = (ort := __import__("onnxruntime")).SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # no sums that saturate on older processors
    session = ort.InferenceSession(path, options, providers=[card["device"]])
    return lambda feeds: dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


if __name__ == "__main__":
    card = json.loads(Path(__file__).with_name("model.json").read_text())
    ((name, how),), ask, wrong = card["inputs"].items(), None, []
    for path in [a for a in sys.argv[1:] if a not in ("-h", "--help")] or sys.exit(__doc__):
        try:
            ask = ask or open_model(str(Path(__file__).with_name(card["file"])), card)
            for output, (values, *_) in ask({name: prepare(path, how)}).items():
                odds, labels = np.exp(values - values.max()), dict(enumerate(card["labels"].get(output) or ()))
                best = [f"{labels.get(i, i)} {odds[i] / odds.sum():.4f}" for i in np.argsort(-odds)[:5]]
                print(path, output, *(best if output in card["classes"] else values), sep="  ")
        except Exception as error:  # engines and Pillow raise many kinds
            wrong.append(f"error: {path if ask else card['file']}: {' '.join(str(error).split())}")
    sys.exit("\n".join(dict.fromkeys(wrong)) or 0)
