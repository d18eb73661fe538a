"""Colour arithmetic: Pillow's answers within a grey level, whole numbers, the same in any batch."""

from __future__ import annotations

import colorsys

import pytest
import torch
from pictures import by_pillow, far, images
from PIL import ImageEnhance, ImageOps

from edgekd.data import color
from edgekd.data.color import ColorJitter
from edgekd.data.draws import ONE, fixed
from edgekd.data.settings import ColorSettings

ENHANCE = {
    "brightness": (color.brightness, ImageEnhance.Brightness),
    "contrast": (color.contrast, ImageEnhance.Contrast),
    "saturation": (color.saturation, ImageEnhance.Color),
    "sharpness": (color.sharpness, ImageEnhance.Sharpness),
}
FACTORS = (0.0, 0.31, 0.75, 1.0, 1.4, 1.9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", sorted(ENHANCE))
def test_a_factor_does_what_pillow_does_within_a_grey_level(name: str, factor: float, channels: int) -> None:
    ours, theirs = ENHANCE[name]
    x = images(channels=channels)
    found = ours(x, torch.full((len(x),), fixed(factor)))
    assert found.dtype == x.dtype
    assert int(found.min()) >= 0 and int(found.max()) <= 255
    assert far(found, by_pillow(x, lambda image: theirs(image).enhance(factor))) <= 1


@pytest.mark.parametrize("name", sorted(ENHANCE))
def test_factor_one_changes_nothing_and_each_image_has_its_own(name: str) -> None:
    x, ours = images(), ENHANCE[name][0]
    assert torch.equal(ours(x, torch.full((6,), ONE)), x)
    factors = torch.tensor([fixed(f) for f in FACTORS])
    alone = torch.cat([ours(x[i : i + 1], factors[i : i + 1]) for i in range(6)])
    assert torch.equal(ours(x, factors), alone)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (color.autocontrast, ImageOps.autocontrast),
        (color.equalize, ImageOps.equalize),
        *((lambda x, b=b: color.posterize(x, b), lambda i, b=b: ImageOps.posterize(i, b)) for b in (1, 4, 7, 8)),
        *((lambda x, t=t: color.solarize(x, t), lambda i, t=t: ImageOps.solarize(i, t)) for t in (0, 90, 255, 256)),
    ],
)
def test_operations_do_what_pillow_does(ours, theirs, channels: int) -> None:  # type: ignore[no-untyped-def]
    x = images(channels=channels, size=(40, 50))
    assert far(ours(x), by_pillow(x, theirs)) <= 1


def test_images_of_one_level_and_tiny_ones_stay() -> None:
    flat = torch.full((1, 3, 20, 20), 77, dtype=torch.int32)
    assert torch.equal(color.autocontrast(flat), flat)
    assert torch.equal(color.equalize(flat), flat)
    tiny = images(2, 3, (2, 2))
    assert torch.equal(color.equalize(tiny), tiny)
    assert torch.equal(color.sharpness(tiny, torch.tensor([0, 2 * ONE])), tiny)


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 1 / 3, 0.5])
def test_hue_turns_as_in_hsv(turn: float) -> None:
    x = images()
    found = color.hue(x, torch.full((len(x),), fixed(turn)))
    before, after = (y.movedim(1, -1).reshape(-1, 3)[::7] for y in (x, found))
    for pixel, ours in zip(before, after, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255).tolist())
        theirs = 255 * torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        assert float((ours - theirs).abs().max()) < 0.52


def test_hue_zero_is_exact_and_a_third_of_the_circle_swaps_channels() -> None:
    x = images()
    assert torch.equal(color.hue(x, torch.zeros(6, dtype=torch.int64)), x)
    third = color.hue(x, torch.full((6,), fixed(1 / 3)))
    assert far(third, x[:, [2, 0, 1]]) <= 1
    grey = images(channels=1)
    assert color.hue(grey, torch.full((6,), fixed(0.3))) is grey
    assert far(color.hue(grey.expand(-1, 3, -1, -1), torch.full((6,), fixed(0.3))), grey) == 0


def test_smoothing_by_product_and_shift_is_a_rounded_division_by_thirteen() -> None:
    sums = torch.arange(13 * 255 + 1, dtype=torch.int32)
    assert torch.equal((sums * 2 + 13) * 20_165 >> 19, (2 * sums + 13) // 26)


def test_jitter_draws_factors_of_its_strength() -> None:
    keys = torch.arange(4000)
    x = torch.full((4000, 3, 1, 1), 100, dtype=torch.uint8)
    found = ColorJitter(ColorSettings(brightness=0.3)).apply(x, keys)
    assert found.dtype == torch.uint8
    assert (int(found.min()), int(found.max())) == (70, 130)
    assert abs(float(found.double().mean()) - 100) < 0.5
    still = ColorJitter(ColorSettings(contrast=0.0)).apply(x, keys)
    assert torch.equal(still, x)


def test_jitter_is_the_same_in_any_batch() -> None:
    jitter = ColorJitter(ColorSettings(brightness=0.4, contrast=0.5, saturation=1.0, hue=0.2))
    x, keys = images(64).to(torch.uint8), torch.arange(64) * 10**15
    whole = jitter.apply(x, keys)
    some = torch.tensor([60, 3, 3, 17])
    assert torch.equal(jitter.apply(x[some], keys[some]), whole[some])
    assert len(torch.unique(whole[:, :, 0, 0], dim=0)) > 32
