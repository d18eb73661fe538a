"""What images become: formats, modes, transparency, orientation, sizes; and what becomes of broken ones."""

from __future__ import annotations

import contextlib
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_sets import PARQUET, encoded, image_folder, opened, picture, same, streamed, write_parquet
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekd.config import validate
from edgekd.data import DataSettings
from edgekd.data.readers.images import ImageDecoder, ImageRules
from edgekd.errors import ConfigError, DataError


def decoded(content: bytes | Path, **rules: Any) -> Any:
    """One image, uint8 (H, W, C)."""
    decoder = ImageDecoder(ImageRules(**({"channels": 3, "size": None} | rules)))
    return decoder.decode([("a", content)], 1)[0].transpose(1, 2, 0)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


# Formats and modes


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_as_they_were(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decoded(encoded(picture(3), form, **options)), picture(3))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if form == "WEBP" else {}
        content = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
        assert (decoded(content) == [255, 0, 0]).all()


@pytest.mark.parametrize("grey", [0, 40, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_are_composed_over_the_background(grey: int, channels: int) -> None:
    half, clear = (200, 100, 50, 128), (9, 9, 9, 0)
    image = Image.new("RGBA", (2, 1))
    image.putdata([half, clear])  # type: ignore[arg-type]
    found = decoded(saved(image), channels=channels, background=grey)[0]
    share = 128 / 255
    over = np.array([c * share + grey * (1 - share) for c in half[:3]])
    expected = over if channels == 3 else [over @ [0.299, 0.587, 0.114]]
    assert np.abs(found[0].astype(int) - expected).max() <= 1
    assert (found[1] == grey).all()


@pytest.mark.parametrize("mode", ["LA", "P", "L", "RGB"])
def test_transparency_of_every_kind_shows_the_background(mode: str) -> None:
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    if mode == "LA":
        content = saved(clear.convert("LA"))
    elif mode == "P":
        content = saved(clear.convert("P"), "GIF", transparency=clear.convert("P").getpixel((0, 0)))
    else:
        content = saved(Image.new(mode, (3, 3), 0), transparency=0 if mode == "L" else (0, 0, 0))
    assert (decoded(content, background=77) == 77).all()


def test_16_bits_keep_the_upper_8() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for content in (saved(Image.fromarray(values)), b"P5 5 1 65535\n" + values.byteswap().tobytes()):
        assert decoded(content, channels=1)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_cmyk_becomes_rgb() -> None:
    content = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert (decoded(content) == [255, 0, 0]).all()


def test_orientation_is_applied_before_resizing() -> None:
    exif = Image.Exif()
    exif[274] = 8  # to be shown turned by 90 degrees against the clock
    content = encoded(picture(0, 4, 6), exif=exif)
    assert np.array_equal(decoded(content, size=(6, 4)), np.rot90(picture(0, 4, 6)))


def test_a_damaged_orientation_is_no_damaged_image() -> None:
    content = encoded(picture(1, 6, 4), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(decoded(content), picture(1, 6, 4))


def test_what_only_is_called_an_image_is_not_given_to_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(DataError, match="cannot be decoded"):
        decoded(script)


# Sizes


def ramp(height: int, width: int) -> Image.Image:
    """Red tells the column, green the row."""
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0], values[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    return Image.fromarray(values)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 60), width=st.integers(1, 60), to=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["stretch", "crop", "pad"]), filter_=st.sampled_from(["nearest", "bilinear", "bicubic"]),
)  # fmt: skip
def test_every_image_is_brought_to_the_size(height, width, to, fit, filter_) -> None:  # type: ignore[no-untyped-def]
    assume(fit != "pad" or min(height, width) * min(to[0] / height, to[1] / width) > 0.5)  # too thin to be padded
    found = decoded(saved(ramp(height, width)), size=to, fit=fit, interpolation=filter_)
    assert found.shape == (*to, 3)


def test_crop_cuts_the_middle_out_and_keeps_the_aspect() -> None:
    found = decoded(saved(ramp(40, 100)), size=(40, 40), fit="crop", interpolation="nearest")
    assert found[0, :, 0].tolist() == list(range(30, 70))
    assert found[:, 0, 1].tolist() == list(range(40))


def test_a_share_cut_out_is_resize_then_centre_crop() -> None:
    image = Image.fromarray(picture(5, 96, 64)).resize((128, 192), Image.Resampling.BICUBIC)
    by_hand = image.resize((64, 96), Image.Resampling.BILINEAR).crop((4, 20, 60, 76))
    found = decoded(saved(image), size=(56, 56), fit="crop", crop_share=0.875)
    assert np.abs(found.astype(int) - np.asarray(by_hand).astype(int))[4:-4, 4:-4].max() <= 2


def test_pad_keeps_the_whole_image_between_black_bars() -> None:
    found = decoded(saved(Image.new("RGB", (20, 10), "white")), size=(20, 20), fit="pad")
    assert (found[5:15] == 255).all()
    assert not found[:5].any()
    assert not found[15:].any()


def test_what_is_too_thin_to_be_padded_is_broken() -> None:
    with pytest.raises(DataError, match="too thin to be padded to 8x8"):
        decoded(saved(ramp(1, 60)), size=(8, 8), fit="pad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "crop"}, "fit says how images are resized, and there is no size"),
        ({"size": [8, 8], "crop_share": 0.5}, "crop_share is for `fit: crop`"),
        ({"size": [8, 8], "background": 300}, "background: 300 is not allowed here"),
        ({"size": [8, 8], "fit": "strech"}, "is not allowed here"),
    ],
)
def test_rules_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    _, problems = validate(DataSettings, {"folder": {"path": "x"}, **options})
    assert [message in problem.message for problem in problems] == [True]


@pytest.mark.parametrize("name", ["fit", "background", "max_pixels", "skip_broken"])
def test_rules_of_images_are_refused_where_none_are_decoded(name: str) -> None:
    value = {"fit": "pad", "background": 0, "max_pixels": 5, "skip_broken": 0.1}[name]
    _, problems = validate(DataSettings, {"npz": {"path": "x"}, name: value})
    assert f"{name} is for images in parquet, folder" in problems[0].message
    assert problems[0].hint == f"remove `{name}:`"


@pytest.mark.parametrize("change", [{"fit": "pad"}, {"interpolation": "nearest"}, {"background": 0}])
def test_rules_enter_the_fingerprint(tmp_path: Path, change: dict[str, Any]) -> None:
    image_folder(tmp_path / "set")
    one = opened(tmp_path, folder={"path": "set"}, size=[4, 4]).fingerprint
    assert opened(tmp_path, folder={"path": "set"}, size=[4, 4], **change).fingerprint != one


# What is too large


def test_a_bomb_is_refused_before_memory_is_taken() -> None:
    # A PNG of 60000 x 60000 grey pixels, whose rows would take 3.6 GB; only its header is whole.
    header = b"IHDR" + (60000).to_bytes(4) * 2 + b"\x08\x00\x00\x00\x00"
    chunk = b"\x00\x00\x00\x0d" + header + zlib.crc32(header).to_bytes(4)
    with pytest.raises(DataError, match="more than 89478485 pixels") as caught:
        decoded(b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT")
    assert "data.max_pixels" in str(caught.value.hint)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.write(encoded(picture(0)))
        stream.truncate(1 << 29)  # a hole: nothing on the disk
    with pytest.raises(DataError, match="the file has more than 256 MiB"):
        decoded(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="no regular file"):
        decoded(tmp_path / "a.png")


# Broken images


def half_broken(folder: Path) -> Path:
    """Twenty images of two classes, of which 3 and 17 are broken."""
    for i in range(20):
        path = folder / ("a" if i < 10 else "b") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i)) if i not in (3, 17) else b"no image")
    return folder


def test_all_broken_images_are_said_at_once_with_the_way_out(tmp_path: Path) -> None:
    half_broken(tmp_path / "set")
    with pytest.raises(DataError, match=r"2 of 20 images are broken: .*03\.png: .*; .*17\.png: ") as caught:
        opened(tmp_path, folder={"path": "set"}, validation=0, test=0).load("train")
    assert "data.skip_broken" in str(caught.value.hint)


@pytest.mark.parametrize("source", ["folder", "parquet", "webdataset"])
def test_broken_images_up_to_a_share_are_left_out(tmp_path: Path, source: str) -> None:
    from data_sets import tar_set

    half_broken(tmp_path / "images")
    contents = [path.read_bytes() for path in sorted((tmp_path / "images").rglob("*.png"))]
    if source == "folder":
        options: dict[str, Any] = {"folder": {"path": "images"}}
    elif source == "parquet":
        (tmp_path / "set").mkdir()
        write_parquet(tmp_path / "set" / "train.parquet", contents, pa.array([0] * 10 + [1] * 10))
        options = {"parquet": PARQUET}
    else:
        tar_set(tmp_path / "set.tar", [{"png": c, "cls": str(i // 10).encode()} for i, c in enumerate(contents)])
        options = {"webdataset": {"path": "set.tar"}}
    memo = tmp_path / "memo.json"
    data = opened(tmp_path, validation=0, test=0, skip_broken=0.1, memo=memo, **options)
    train = data.load("train")
    assert train.targets["label"].tolist() == [0] * 9 + [1] * 9
    kept = [i for i in range(20) if i not in (3, 17)]
    assert all(np.array_equal(x.permute(1, 2, 0), picture(i)) for x, i in zip(train.inputs["image"], kept, strict=True))
    assert [broken.row for broken in data.left_out_images["train"]] == [3, 17]
    assert data.counts()["train"] == 18
    stream = streamed(tmp_path, validation=0, test=0, skip_broken=0.1, **options)
    same(stream.load("train").take(torch.arange(18)), train)
    with pytest.raises(DataError, match=r"2 of 20 images of train are broken, more than the share") as caught:
        opened(tmp_path, skip_broken=0.05, **options).counts()
    assert "now 0.05" in str(caught.value.hint)


def test_broken_images_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_broken(tmp_path / "set")
    memo = tmp_path / "memo.json"
    first = opened(tmp_path, memo=memo, folder={"path": "set"}, skip_broken=0.5)
    expected = first.left_out_images
    monkeypatch.setattr(ImageDecoder, "convert", lambda *_: pytest.fail("an image was decoded"))
    assert opened(tmp_path, memo=memo, folder={"path": "set"}, skip_broken=0.5).left_out_images == expected


def test_leaving_out_is_another_data_set(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    plain, lenient = (opened(tmp_path, folder={"path": "set"}, skip_broken=s).fingerprint for s in (0, 0.1))
    assert plain != lenient


# Folders


def test_a_split_may_be_called_val(tmp_path: Path) -> None:
    image_folder(tmp_path / "set", splits=("train", "val"))
    assert opened(tmp_path, folder={"path": "set"}).counts() == {"train": 8, "validation": 10, "test": 2}
    (tmp_path / "set" / "validation").mkdir()
    with pytest.raises(ConfigError, match="holds both validation and val"):
        opened(tmp_path, folder={"path": "set"})


def test_links_out_of_the_folder_are_refused_unless_they_are_allowed(tmp_path: Path) -> None:
    image_folder(tmp_path / "elsewhere", splits=("a",))
    image_folder(tmp_path, splits=("set",))
    inside = tmp_path / "set" / "cat" / "inside.png"
    inside.symlink_to(tmp_path / "set" / "dog" / "0.png")
    assert opened(tmp_path, folder={"path": "set"}, validation=0, test=0).counts()["train"] == 11
    for link, target in (("cat/x.png", "elsewhere/a/cat/0.png"), ("owl", "elsewhere/a/cat"), ("x", "elsewhere")):
        place = tmp_path / "set" / link
        place.symlink_to(tmp_path / target)
        with pytest.raises(ConfigError, match="leads out of") as caught:
            opened(tmp_path, folder={"path": "set"})
        assert "outside: true" in str(caught.value.hint)
        data = opened(tmp_path, folder={"path": "set", "outside": True}, validation=0, test=0)
        assert data.counts()["train"] > 11
        place.unlink()


def test_a_folder_that_contains_itself_is_refused(tmp_path: Path) -> None:
    image_folder(tmp_path, splits=("set",))
    (tmp_path / "set" / "cat" / "again").symlink_to(tmp_path / "set")
    with pytest.raises(ConfigError, match="leads to a folder that it lies in"):
        opened(tmp_path, folder={"path": "set", "outside": True})


def test_frames_of_a_folder_need_no_labels(tmp_path: Path) -> None:
    frames = tmp_path / "frames" / "2024-05"
    frames.mkdir(parents=True)
    for i in range(12):
        Image.fromarray(picture(i, 8 + i, 9)).save(tmp_path / "frames" / f"{i}.jpg")
    data = opened(tmp_path, folder={"path": "frames"}, size=[8, 8], fit="crop")
    assert data.target_names == ()
    assert data.load("train").targets == {}


# Whatever bytes there are


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), form=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"]))
def test_a_damaged_image_is_an_image_or_a_data_error(data: st.DataObject, form: str) -> None:
    content = bytearray(encoded(picture(1, 12, 9), form))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    whole = bytes(content[:cut] if data.draw(st.booleans()) else content)
    with contextlib.suppress(DataError):
        assert decoded(whole, size=(4, 4)).shape == (4, 4, 3)
