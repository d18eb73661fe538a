"""mixup, cutmix and erasing: shares from Beta(alpha, alpha), boxes exact in pixels, all by counter."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import betaincinv
from torch import Tensor

from edgekd.data.draws import ONE, draw, sample_keys
from edgekd.data.mixing import Erasing, Mix, Mixing, beta_quantiles
from edgekd.errors import ConfigError

KEYS = sample_keys(torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64))


def boxes(mix: Mix, height: int, width: int) -> Tensor:
    """Which pixels come from the partner: bool (N, H, W)."""
    zeros = torch.zeros(len(mix.share), 1, height, width)
    return mix.blend(zeros, torch.ones_like(zeros))[:, 0] == 1


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.9, 1.0, 1.1, 2.0, 8.0, 32.0])
def test_quantiles_of_beta_are_those_of_scipy(alpha: float) -> None:
    u = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
    expected = torch.from_numpy(betaincinv(alpha, alpha, u.numpy()))
    assert float((beta_quantiles(alpha, 512) - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 4.0])
def test_quantiles_have_the_mean_and_variance_of_beta(alpha: float) -> None:
    q = beta_quantiles(alpha, 4096)
    assert float(q.mean()) == pytest.approx(0.5, abs=1e-12)
    assert float(q.var(correction=0)) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)
    assert bool((q.diff() >= 0).all())


def test_an_odd_number_of_quantiles_has_its_median_in_the_middle() -> None:
    q = beta_quantiles(0.3, 5)
    assert len(q) == 5
    assert float(q[2]) == pytest.approx(0.5)
    assert torch.allclose(q + q.flip(0), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_of_mixup_are_drawn_from_beta(alpha: float) -> None:
    mix = Mixing(alpha, 0, 1).plan(KEYS)
    share = mix.shares(torch.empty(0)).double()
    assert mix.cut is None
    assert float(share.mean()) == pytest.approx(0.5, abs=0.015)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


@pytest.mark.parametrize("shape", [(7,), (3, 5, 4), ()])
def test_mixup_is_linear(shape: tuple[int, ...]) -> None:
    mix = Mixing(0.4, 0, 1).plan(KEYS[:9])
    x, other = torch.randn(9, *shape), torch.randn(9, *shape)
    share = mix.shares(x).view(-1, *[1] * len(shape))
    assert torch.allclose(mix.blend(x, other), share * x + (1 - share) * other)
    assert torch.allclose(mix.blend(x, x), x)


@pytest.mark.parametrize("size", [(32, 32), (7, 19), (1, 1)])
def test_the_share_of_cutmix_is_exact_in_pixels(size: tuple[int, int]) -> None:
    mix = Mixing(0, 1.0, 1).plan(KEYS[:500])
    pasted = boxes(mix, *size)
    share = mix.shares(torch.empty(500, 1, *size))
    assert torch.equal(share, (~pasted).flatten(1).sum(1) / (size[0] * size[1]))
    rows, columns = pasted.any(2), pasted.any(1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])
    for edge in (rows, columns):  # one box, in one piece
        assert int((edge[:, 1:] & ~edge[:, :-1]).sum(1).max()) <= 1 if edge.shape[1] > 1 else True


def test_boxes_of_cutmix_are_everywhere_and_of_all_sizes() -> None:
    pasted = boxes(Mixing(0, 1.0, 1).plan(KEYS), 8, 8).float()
    where = pasted.mean(0)
    assert float(where.min()) > 0.1 and float(where.max()) < 0.5
    assert float((where - where.flip(0, 1)).abs().max()) < 0.1
    # Boxes would have an area of 1/2 on average, did they not end at the border.
    assert 0.2 < float(pasted.mean()) < 0.4


def test_of_mixup_and_cutmix_each_view_takes_one_with_equal_odds() -> None:
    mix = Mixing(0.2, 1.0, 1).plan(KEYS)
    assert mix.cut is not None
    assert float(mix.cut.float().mean()) == pytest.approx(0.5, abs=0.015)
    x, other = torch.zeros(20_000, 1, 4, 4), torch.ones(20_000, 1, 4, 4)
    mixed = mix.blend(x, other)
    assert bool(((mixed == 0) | (mixed == 1))[mix.cut].all())
    averaged = mixed[~mix.cut].flatten(1)
    assert torch.equal(averaged, averaged[:, :1].expand_as(averaged))
    assert torch.allclose(1 - mix.shares(x), mixed.mean((1, 2, 3)), atol=1e-6)


def test_partners_and_their_views_are_drawn_evenly_and_apart_from_the_rest() -> None:
    mixing = Mixing(1.0, 0, 10)
    partners, mix = mixing.partners(KEYS, 10), mixing.plan(KEYS)
    for drawn in (partners, mix.view, (mix.share * 10) // ONE):
        counts = drawn.clamp(max=9).bincount(minlength=10).double()
        assert float(((counts - 2000).square() / 2000).sum()) < 9 + 6 * math.sqrt(18)
    together = torch.corrcoef(torch.stack([partners, mix.view, mix.share]).double()) - torch.eye(3)
    assert float(together.abs().max()) < 0.03


def test_cutmix_refuses_what_has_no_pixels_and_mixup_does_not() -> None:
    flat, image = torch.zeros(1, 5), torch.zeros(1, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"cutmix: the input 'x' is not an image"):
        Mixing(0.2, 1.0, 1).check({"image": image, "x": flat})
    with pytest.raises(ConfigError, match="several sizes"):
        Mixing(0, 1.0, 1).check({"a": image, "b": image[..., :4]})
    Mixing(0.2, 0, 1).check({"image": image, "x": flat})


def test_memory_layout_stays() -> None:
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for mix in (Mixing(0.2, 0, 1).plan(KEYS[:4]), Mixing(0.2, 1.0, 1).plan(KEYS[:4])):
        assert mix.blend(x, x.clone()).is_contiguous(memory_format=torch.channels_last)
    assert Erasing(1.0).apply(x, KEYS[:4]).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_erasing_takes_its_share_of_views_and_of_the_image(probability: float) -> None:
    erased = Erasing(probability).apply(torch.ones(20_000, 2, 20, 30), KEYS) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    hit = erased.flatten(1).any(1)
    assert float(hit.float().mean()) == pytest.approx(probability, abs=0.01)
    if probability:
        area = erased[hit, 0].flatten(1).float().mean(1)
        assert float(area.min()) > 0.005 and float(area.max()) <= 0.4
        assert float(area.mean()) == pytest.approx(0.21, abs=0.03)


def test_samples_and_slots_are_drawn_apart() -> None:
    ids, slots = torch.arange(500)[:, None].expand(-1, 16).flatten(), torch.arange(16).repeat(500)
    keys = sample_keys(ids, slots)
    assert len(torch.unique(keys)) == 8000
    drawn = draw(keys, "mix", 3).double().view(500, 16, 3) / 2**63
    assert float(torch.corrcoef(drawn.reshape(500, -1).T).fill_diagonal_(0).abs().max()) < 0.25
    assert len(torch.unique(sample_keys(torch.arange(100), torch.arange(100) * 2**50))) == 100
