"""Seeded views: enumerable, the same in any batch, and drawn without any state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd.data.settings import AugmentSettings
from edgekd.data.views import Views, hash_counter, permutation

PAD_CROP_FLIP = AugmentSettings(crop=4, flip=True)


def naive_view(image: Tensor, view: int, crop: int) -> Tensor:
    """One image (C, H, W): pad, cut a window, mirror; with slices instead of index arithmetic."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * crop, width + 2 * crop, dtype=image.dtype)
    padded[:, crop : crop + height, crop : crop + width] = image
    places = 2 * crop + 1
    row, column = view % places**2 // places, view % places
    window = padded[:, row : row + height, column : column + width]
    return window.flip(2) if view >= places**2 else window


def splitmix64(seed_state: int) -> int:
    z = (seed_state + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


def test_crop_of_four_with_flips_has_162_distinct_views() -> None:
    views = Views(PAD_CROP_FLIP, seed=0)
    assert views.count == 162
    image = torch.randint(1, 255, (1, 3, 32, 32), dtype=torch.uint8).expand(162, -1, -1, -1)
    assert len(torch.unique(views.apply(image, torch.arange(162)), dim=0)) == 162


@pytest.mark.parametrize(
    ("augment", "count"),
    [
        (None, 1),
        (AugmentSettings(), 1),
        (AugmentSettings(flip=True), 2),
        (AugmentSettings(crop=1), 9),
        (AugmentSettings(crop=2, flip=True), 50),
    ],
)
def test_number_of_views_follows_from_crop_and_flip(augment: AugmentSettings | None, count: int) -> None:
    views = Views(augment, seed=0)
    assert views.count == count
    assert views.per_sample == min(count, 16)
    assert views.own(torch.arange(40)).shape == (40, views.per_sample)


@settings(max_examples=40, deadline=None)
@given(
    crop=st.integers(0, 5),
    flip=st.booleans(),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    dtype=st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.float16, torch.bool]),
    data=st.data(),
)
def test_a_view_equals_pad_crop_and_flip_of_each_sample(crop, flip, shape, dtype, data) -> None:  # type: ignore[no-untyped-def]
    views = Views(AugmentSettings(crop=crop, flip=flip), seed=0)
    chosen = data.draw(st.lists(st.integers(0, views.count - 1), min_size=shape[0], max_size=shape[0]))
    x = torch.randint(0, 255, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.stack([naive_view(image, view, crop) for image, view in zip(x, chosen, strict=True)])
    result = views.apply(x, torch.tensor(chosen))
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_identity_view_changes_nothing() -> None:
    views = Views(PAD_CROP_FLIP, seed=0)
    x = torch.rand(5, 3, 8, 6)
    assert torch.equal(views.apply(x, torch.full((5,), views.identity)), x)


def test_without_augmentation_nothing_happens() -> None:
    views = Views(None, seed=3)
    x = torch.rand(5, 3, 8, 8)
    assert views.choose(7, torch.arange(5)).tolist() == [0] * 5
    assert views.apply(x, torch.zeros(5, dtype=torch.int64)) is x


def test_only_images_are_augmented() -> None:
    views = Views(PAD_CROP_FLIP, seed=0)
    x = torch.rand(5, 12)
    assert views.apply(x, views.choose(0, torch.arange(5))) is x


def test_a_sample_looks_the_same_in_any_batch() -> None:
    views = Views(PAD_CROP_FLIP, seed=1)
    x, ids = torch.rand(64, 3, 16, 16), torch.arange(100, 164)
    whole = views.apply(x, views.choose(5, ids))
    some = torch.tensor([60, 3, 3, 17])
    assert torch.equal(views.apply(x[some], views.choose(5, ids[some])), whole[some])


@pytest.mark.parametrize("own", [1, 16, 100, 162, 1000])
def test_each_sample_has_as_many_distinct_views_of_its_own_as_asked_for(own: int) -> None:
    views = Views(AugmentSettings(crop=4, flip=True, views=own), seed=0)
    drawn = views.own(torch.arange(200))
    assert drawn.shape == (200, min(own, 162))
    assert all(len(set(row)) == min(own, 162) for row in drawn.tolist())


def test_samples_seldom_share_all_their_views() -> None:
    own = Views(PAD_CROP_FLIP, seed=0).own(torch.arange(500)).tolist()
    assert len({frozenset(row) for row in own}) > 450


def test_epochs_show_only_a_samples_own_views_and_in_time_all_of_them() -> None:
    views = Views(PAD_CROP_FLIP, seed=0)
    ids = torch.arange(50)
    seen = torch.stack([views.choose(epoch, ids) for epoch in range(300)], dim=1)
    assert [set(row) for row in seen.tolist()] == [set(row) for row in views.own(ids).tolist()]


def test_own_views_are_shared_by_seeds_and_the_choice_is_not() -> None:
    ids = torch.arange(1000)
    one, other = Views(PAD_CROP_FLIP, seed=1), Views(PAD_CROP_FLIP, seed=2)
    assert torch.equal(one.own(ids), other.own(ids))
    assert not torch.equal(one.choose(0, ids), other.choose(0, ids))
    assert not torch.equal(one.choose(0, ids), one.choose(1, ids))


@pytest.mark.parametrize("kept", [16, "all"])
def test_views_are_drawn_uniformly(kept: int | str) -> None:
    views = Views(AugmentSettings(crop=4, flip=True, views=kept), seed=0)
    drawn = torch.cat([views.choose(epoch, torch.arange(20_000)) for epoch in range(4)])
    assert chi_square(drawn, 162) < 161 + 6 * math.sqrt(2 * 161)


def test_every_view_is_equally_often_somebodys_own() -> None:
    own = Views(PAD_CROP_FLIP, seed=0).own(torch.arange(20_000))
    assert chi_square(own.flatten(), 162) < 161 + 6 * math.sqrt(2 * 161)
    mirrored = (own >= 81).sum(1).float()
    assert abs(float(mirrored.mean()) - 8) < 0.05
    assert float(mirrored.min()) >= 1


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40), ids=st.lists(st.integers(0, 2**62), max_size=5))
def test_hash_is_splitmix64_whatever_the_numbers(seed: int, epoch: int, ids: list[int]) -> None:
    import hashlib

    purpose = int.from_bytes(hashlib.sha256(b"test").digest()[:8], "big")
    start = splitmix64(splitmix64(splitmix64(purpose) + seed) + epoch)
    expected = [splitmix64(start + i * 0x9E3779B97F4A7C15) % 2**63 for i in ids]
    assert hash_counter(seed, "test", epoch, torch.tensor(ids, dtype=torch.int64)).tolist() == expected


def test_hash_depends_on_all_that_it_is_made_of() -> None:
    ids = torch.arange(100)
    hashes = [
        hash_counter(0, "a", 0, ids),
        hash_counter(1, "a", 0, ids),
        hash_counter(0, "b", 0, ids),
        hash_counter(0, "a", 1, ids),
        hash_counter(0, "a", 0, ids + 100),
    ]
    assert len(torch.unique(torch.cat(hashes))) == 500
    assert all(bool((h >= 0).all()) for h in hashes)


def test_hash_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Views(PAD_CROP_FLIP, seed=0).choose(0, torch.arange(10))
    permutation(0, "x", 0, 10)
    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), n=st.integers(0, 300))
def test_permutation_holds_every_number_once(seed: int, n: int) -> None:
    order = permutation(seed, "shuffle", 2, n)
    assert order.sort().values.tolist() == list(range(n))
    assert torch.equal(order, permutation(seed, "shuffle", 2, n))


def chi_square(drawn: Tensor, count: int) -> float:
    expected = len(drawn) / count
    return float(((drawn.bincount(minlength=count) - expected).square() / expected).sum())
