"""RandAugment: its fourteen operations by Pillow's answers, drawn evenly, the same in any batch."""

from __future__ import annotations

import math

import pytest
import torch
from pictures import by_pillow, far, images
from PIL import Image
from torch import Tensor

from edgekd.data.draws import draw
from edgekd.data.rand_augment import OPERATIONS, RandAugment
from edgekd.data.settings import RandAugmentSettings

STRENGTHLESS = {"autocontrast", "equalize"}
BOTH = torch.tensor([-1, 1] * 3)


def run(name: str, x: Tensor, direction: Tensor, strength: float) -> Tensor:
    return OPERATIONS[name](x.clone(), direction, strength)


def shown_by_pillow(x: Tensor, matrix: tuple[float, ...]) -> Tensor:
    return by_pillow(x, lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix))


def test_the_operations_are_those_of_the_paper() -> None:
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_keep_shape_type_and_range(name: str, channels: int) -> None:
    x = images(channels=channels, size=(30, 21))
    found = run(name, x, BOTH, 1.0)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert int(found.min()) >= 0 and int(found.max()) <= 255


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - STRENGTHLESS))
def test_without_strength_nothing_happens(name: str) -> None:
    x = images()
    assert torch.equal(run(name, x, BOTH, 0.0), x)
    if name != "identity":
        assert not torch.equal(run(name, x, BOTH, 1.0), x)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_shears_and_translations_are_pillows_affine_maps(strength: float, sign: int) -> None:
    x, direction = images(size=(24, 37)), torch.full((6,), sign)
    shear = sign * 0.3 * strength
    assert torch.equal(run("shear_x", x, direction, strength), shown_by_pillow(x, (1, shear, 0, 0, 1, 0)))
    assert torch.equal(run("shear_y", x, direction, strength), shown_by_pillow(x, (1, 0, 0, shear, 1, 0)))
    across, down = (sign * int(150 / 331 * strength * side) for side in (37, 24))
    assert torch.equal(run("translate_x", x, direction, strength), shown_by_pillow(x, (1, 0, across, 0, 1, 0)))
    assert torch.equal(run("translate_y", x, direction, strength), shown_by_pillow(x, (1, 0, 0, 0, 1, down)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_rotation_is_pillows_about_the_centre(sign: int) -> None:
    x, direction = images(size=(24, 37)), torch.full((6,), sign)
    expected = by_pillow(x, lambda image: image.rotate(sign * 30))
    found = run("rotate", x, direction, 1.0)
    # Where a place lies between two pixels, either may be the nearest.
    assert float((found != expected).float().mean()) < 0.01


def test_directions_belong_to_their_rows() -> None:
    x = images()
    for name in OPERATIONS:
        mixed = run(name, x, BOTH, 0.5)
        for i, sign in enumerate(BOTH.tolist()):
            assert torch.equal(mixed[i : i + 1], run(name, x[i : i + 1], torch.tensor([sign]), 0.5))


def test_factors_are_one_plus_or_minus_nine_tenths_of_the_strength() -> None:
    x = torch.full((2, 1, 3, 3), 100, dtype=torch.int32)
    found = run("brightness", x, torch.tensor([-1, 1]), 9 / 30)
    assert found[:, 0, 0, 0].tolist() == [73, 127]


def test_images_look_the_same_in_any_batch_and_differ_from_each_other() -> None:
    augment = RandAugment(RandAugmentSettings(operations=3, magnitude=12))
    x, keys = images(64).to(torch.uint8), torch.arange(64) * 10**15
    whole = augment.apply(x, keys)
    assert (whole.dtype, whole.shape) == (torch.uint8, x.shape)
    some = torch.tensor([60, 3, 3, 17])
    assert torch.equal(augment.apply(x[some], keys[some]), whole[some])
    assert float((whole != x).flatten(1).any(1).float().mean()) > 0.9
    assert far(augment.apply(x, keys), whole) == 0


def test_one_round_is_the_operation_that_was_drawn() -> None:
    augment = RandAugment(RandAugmentSettings(operations=1, magnitude=15))
    x, keys = images(64), torch.arange(64)
    drawn = draw(keys, "rand augment", 2)
    found = augment.apply(x.to(torch.uint8), keys)
    for i in range(64):
        name = list(OPERATIONS)[int(drawn[i, 0]) % 14]
        assert torch.equal(found[i : i + 1].int(), run(name, x[i : i + 1], drawn[i : i + 1, 1] % 2 * 2 - 1, 0.5))


def test_operations_are_drawn_evenly() -> None:
    drawn = draw(torch.arange(28_000), "rand augment", 4) % torch.tensor([14, 2, 14, 2])
    for column, count in enumerate((14, 2, 14, 2)):
        counts = drawn[:, column].bincount(minlength=count).double()
        chi_square = float(((counts - 28_000 / count).square() / (28_000 / count)).sum())
        assert chi_square < count - 1 + 6 * math.sqrt(2 * count)
