"""A network that is asked about mirror images as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.train.mirrored import mirrored
from edgekd.train.world import Model

HEADS = (
    HeadSettings(output="kind", task="classification", target=None),
    HeadSettings(output="size", task="regression", target=None),
)


class Corner(nn.Module):
    """Reads one corner of the image, and a number that comes with it."""

    def forward(self, image: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
        corner = image[:, :, 0, 0]
        return 3 * corner + extra, corner.sum(1, keepdim=True)


def model() -> Model:
    return Model(Corner(), ("image", "extra"), ("kind", "size"))


def test_probabilities_and_values_are_the_means_over_both_ways_to_see_an_image() -> None:
    image, extra = torch.randn(5, 4, 6, 7), torch.randn(5, 4)
    answer = mirrored(model(), HEADS)({"image": image, "extra": extra})
    left, right = image[:, :, 0, 0], image[:, :, 0, -1]
    kinds = ((3 * left + extra).softmax(1) + (3 * right + extra).softmax(1)) / 2
    torch.testing.assert_close(answer["kind"].exp(), kinds)
    torch.testing.assert_close(answer["size"], (left.sum(1, keepdim=True) + right.sum(1, keepdim=True)) / 2)


def test_the_mirror_image_gets_the_same_answer() -> None:
    image, extra = torch.randn(5, 4, 6, 7), torch.randn(5, 4)
    twice = mirrored(model(), HEADS)
    seen = twice({"image": image, "extra": extra})
    other = twice({"image": image.flip(3), "extra": extra})
    torch.testing.assert_close(seen, other)


def test_answers_so_sure_that_a_probability_vanishes_stay_finite() -> None:
    image, extra = torch.zeros(1, 4, 2, 2), torch.tensor([[0.0, 0.0, 500.0, -500.0]])
    answer = mirrored(model(), HEADS)({"image": image, "extra": extra})
    assert answer["kind"].isfinite().all()


def test_rows_of_numbers_have_no_mirror_image() -> None:
    network = mirrored(Model(nn.Linear(3, 2), ("row",), ("kind",)), HEADS)
    with pytest.raises(ConfigError, match="mirrored is for images"):
        network({"row": torch.randn(2, 3)})
