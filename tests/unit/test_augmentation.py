"""Augmentation as training sees it: exact for each (sample, slot), whatever the batch, the seed or the cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_teacher_cache import cache_in
from test_trainer import HEADS, OPTIM, make_net, same, state
from torch import Tensor

from edgekd.config import validate
from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Table, measure
from edgekd.data.views import Views
from edgekd.distill.schemes.offline import offline
from edgekd.distill.settings import DistillationSettings
from edgekd.errors import ConfigError
from edgekd.tasks import HeadSettings
from edgekd.tasks.classification import cross_entropy
from edgekd.train.feed import Feed
from edgekd.train.trainer import Run, train
from edgekd.train.world import World

CPU = torch.device("cpu")
EVERYTHING: dict[str, Any] = {
    "crop": 1,
    "flip": True,
    "color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "rand_augment": {},
    "erase": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
    "views": 4,
}
REAL = (HeadSettings(output="value", task="regression", target="angle"),)


def views(seed: int = 7, **options: Any) -> Views:
    return Views(AugmentSettings.model_validate(options), seed)


def table(rows: int = 70, channels: int = 1) -> Table:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(3, (rows,), generator=generator)
    image = torch.randint(150, (rows, channels, 9, 9), generator=generator) + 50 * label.view(-1, 1, 1, 1)
    return Table({"image": image.to(torch.uint8)}, {"label": label}, torch.arange(rows))


def feed_of(data: Table, seen: Views, heads: tuple[HeadSettings, ...] = HEADS) -> Feed:
    normalization = {name: measure(x) for name, x in data.inputs.items()}
    return Feed(World({}, {"train": data}, heads, normalization), data, seen, CPU)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_looks_the_same_in_any_batch_and_order(channels: int) -> None:
    data = table(channels=channels)
    feed = feed_of(data, views(**EVERYTHING))
    feed.start_epoch(3, torch.arange(70))
    (whole,) = feed.batches([70])
    order = torch.randperm(70)
    feed.start_epoch(3, order)
    for positions, batch in zip(torch.split(order, [32, 37, 1]), feed.batches([32, 37, 1]), strict=True):
        assert batch.keys() == whole.keys() == feed.columns()
        assert all(torch.equal(batch[name], whole[name][positions]) for name in whole)
    assert torch.equal(feed.batch(torch.tensor([5, 2]))["image"], whole["image"][order[[5, 2]]])


@examples(max_examples=25, deadline=None)
@given(st.data())
def test_any_choice_of_augmentations_is_exact_for_each_sample(data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(EVERYTHING))))
    options = {name: EVERYTHING[name] for name in chosen} | {"views": data.draw(st.sampled_from([3, "all"]))}
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 69), min_size=1, max_size=9)))
    whole, some = (feed_of(table(), views(**options)) for _ in range(2))
    whole.start_epoch(5, torch.arange(70))
    some.start_epoch(5, rows)
    expected, found = whole.batch(rows), some.batch(torch.arange(len(rows)))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_seeds_share_a_samples_views_and_epochs_show_all_of_them() -> None:
    def seen(seed: int) -> set[bytes]:
        feed = feed_of(table(), views(seed, **EVERYTHING))
        found = set()
        for epoch in range(40):
            feed.start_epoch(epoch, torch.tensor([11]))
            found.add(feed.batch(torch.tensor([0]))["image"].numpy().tobytes())
        return found

    assert seen(1) == seen(2)
    assert len(seen(1)) == 4


def test_without_end_every_epoch_shows_another_view() -> None:
    endless = views(**{**EVERYTHING, "views": "all"})
    assert not endless.finite
    feed = feed_of(table(), endless)
    found = set()
    for epoch in range(40):
        feed.start_epoch(epoch, torch.tensor([11]))
        found.add(feed.batch(torch.tensor([0]))["image"].numpy().tobytes())
    assert len(found) == 40


@pytest.mark.parametrize(
    ("options", "finite", "per_sample"),
    [
        ({}, True, 1),
        ({"crop": 1, "views": "all"}, True, 9),
        ({"crop": 1, "color": {"hue": 0.0}, "mixup": 0, "views": "all"}, True, 9),
        ({"color": {"hue": 0.1}}, True, 16),
        ({"crop": 1, "erase": 0.1, "views": 100}, True, 100),
        ({"rand_augment": {}, "views": "all"}, False, 0),
        ({"mixup": 0.2, "views": "all"}, False, 0),
        ({"cutmix": 1, "views": "all"}, False, 0),
    ],
)
def test_views_are_finite_unless_all_of_an_endless_augmentation_are_wanted(
    options: dict[str, Any], finite: bool, per_sample: int
) -> None:
    assert AugmentSettings.model_validate(options).finite == finite
    assert (views(**options).finite, views(**options).per_sample) == (finite, per_sample)


def distil(cache: object, epochs: int) -> tuple[World, list[dict[str, Any]]]:
    data = table()
    world = World(
        {"teacher": make_net(8, 1), "student": make_net(4, 2)},
        {"train": data},
        HEADS,
        {"image": measure(data.inputs["image"])},
    )
    phases = offline(HEADS, DistillationSettings(), OPTIM, epochs, None, mixed=True, label_smoothing=0.1)
    caches: Any = {"teacher": cache} if cache else {}
    return world, train(world, phases, Run(7, 16, CPU, "f32", views(**EVERYTHING), caches=caches))


def test_a_cached_teacher_equals_a_live_one_bit_for_bit_on_mixed_samples(tmp_path: Path) -> None:
    live, live_curves = distil(None, 6)
    cache = cache_in(tmp_path)
    for _ in range(2):  # cold, then warm
        cached, curves = distil(cache, 6)
        assert curves == live_curves
        assert same(state(cached.models["student"]), state(live.models["student"]))
    assert 0 < cache.filled() <= 70 * 4


def test_classes_are_learned_in_the_shares_in_which_samples_are_mixed() -> None:
    logits, own, other = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 1, 0, 0, 2])
    share = torch.tensor([1.0, 0.25, 0.5, 0.75, 0.0])
    soft = share[:, None] * torch.eye(3)[own] + (1 - share[:, None]) * torch.eye(3)[other]
    for smoothing in (0.0, 0.2):
        expected = -(((1 - smoothing) * soft + smoothing / 3) * logits.log_softmax(1)).sum(1).mean()
        found = cross_entropy(logits, target=own, other=other, share=share, label_smoothing=smoothing)
        assert torch.allclose(found, expected)
        plain = cross_entropy(logits, target=own, label_smoothing=smoothing)
        unmixed = cross_entropy(logits, target=own, other=other, share=torch.ones(5), label_smoothing=smoothing)
        assert torch.allclose(unmixed, plain)


def test_terms_name_the_columns_of_mixed_batches() -> None:
    heads = (*HEADS, HeadSettings(output="angle", task="regression", target="angle"))
    terms = offline(heads, DistillationSettings(), OPTIM, 1, None, mixed=True, label_smoothing=0.1)[0].moves[0].terms
    assert terms[0].also == {"target": "label", "other": "label_other", "share": "mix_share"}
    assert terms[0].settings == {"label_smoothing": 0.1}
    assert (terms[1].also, terms[1].settings) == ({"target": "angle"}, {})
    plain = offline(heads, DistillationSettings(), OPTIM, 1, None)[0].moves[0].terms
    assert (plain[0].also, plain[0].settings) == ({"target": "label"}, {})


def test_arrays_and_real_targets_are_mixed_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    data = Table({"x": x}, {"angle": x.sum(1), "label": torch.arange(50), "count": torch.arange(50)}, torch.arange(50))
    heads = (*REAL, HeadSettings(output="count", task="regression", target="count"))
    feed = Feed(World({}, {}, heads), data, views(mixup=1.0, color={}), CPU)
    feed.start_epoch(0, torch.arange(50).flip(0))
    batch = feed.batch(torch.arange(50))
    own, partners = batch["label"], batch["label_other"]
    share = batch["mix_share"]
    assert torch.allclose(batch["x"], share[:, None] * x[own] + (1 - share[:, None]) * x[partners])
    assert torch.allclose(batch["angle"], batch["x"].sum(1), atol=1e-5)
    assert torch.allclose(batch["count"], share * own + (1 - share) * partners)
    assert torch.equal(own, torch.arange(50).flip(0))
    assert not torch.equal(own, partners)
    assert feed.columns() == batch.keys() == {"x", "angle", "count", "label", "label_other", "mix_share", "sample_ids"}


def test_partners_are_seen_in_geometric_views_only() -> None:
    """An even image has one level after colour jitter; a box pasted into it has the level from before, and zeros."""
    data = Table({"image": torch.full((70, 1, 9, 9), 200, dtype=torch.uint8)}, {}, torch.arange(70))
    feed = Feed(World({}, {}, ()), data, views(crop=2, color={"brightness": 1.0}, cutmix=1.0), CPU)
    feed.start_epoch(0, torch.arange(70))
    image, share = feed.batch(torch.arange(70))["image"], feed.batch(torch.arange(70))["mix_share"]
    pasted = (share < 0.9) & (share > 0.1)
    assert bool(((image == 200).flatten(1).any(1))[pasted].all())
    assert max(len(one.unique()) for one in image) == 3
    jittered = image.flatten(1).amax(1)[share == 1]
    assert bool((jittered != 200).all())


class Streamed:
    """A table that is read batch by batch."""

    def __init__(self, whole: Table) -> None:
        self._whole = whole
        self.inputs = {name: x.to("meta") for name, x in whole.inputs.items()}
        self.targets, self.ids = whole.targets, whole.ids

    def __len__(self) -> int:
        return len(self._whole)

    def take(self, rows: Tensor) -> Table:
        return self._whole.take(rows)

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        return iter([self._whole.take(rows) for rows in groups])


def test_a_streamed_table_gives_the_same_batches() -> None:
    data = table()
    world = World({}, {}, HEADS, {"image": measure(data.inputs["image"])})
    resident, streamed = (Feed(world, rows, views(**EVERYTHING), CPU) for rows in (data, Streamed(data)))
    for feed in (resident, streamed):
        feed.start_epoch(1, torch.arange(70))
    for a, b in zip(resident.batches([40, 30]), streamed.batches([40, 30]), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_several_images_of_a_sample_are_seen_alike() -> None:
    image = table().inputs["image"]
    data = Table({"left": image, "right": image.clone()}, {"label": torch.arange(70)}, torch.arange(70))
    feed = feed_of(data, views(**EVERYTHING))
    feed.start_epoch(0, torch.arange(70))
    batch = feed.batch(torch.arange(70))
    assert torch.equal(batch["left"], batch["right"])


@pytest.mark.parametrize("option", ["color", "rand_augment"])
def test_colours_of_what_has_no_pixels_are_refused(option: str) -> None:
    data = Table({"x": torch.zeros(5, 3, 4, 4)}, {"label": torch.arange(5)}, torch.arange(5))
    with pytest.raises(ConfigError, match=f"data.augment.{option} changes pixels of 0 .. 255") as caught:
        feed_of(data, views(**{option: EVERYTHING[option]}))
    assert "uint8" in str(caught.value.hint)


def test_a_column_that_mixing_would_overwrite_is_refused() -> None:
    whole = table()
    data = Table(whole.inputs, {**whole.targets, "mix_share": whole.targets["label"]}, whole.ids)
    with pytest.raises(ConfigError, match="'mix_share', which mixing makes"):
        feed_of(data, views(mixup=0.2))
    feed_of(data, views())


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        ({"mixup": -1}, "mixup", "-1 is not allowed here"),
        ({"cutmix": 100}, "cutmix", "100 is not allowed here"),
        ({"erase": 1.5}, "erase", "1.5 is not allowed here"),
        ({"color": {"brightness": 2}}, "color.brightness", "2 is not allowed here"),
        ({"color": {"hue": 0.6}}, "color.hue", "0.6 is not allowed here"),
        ({"color": {"contrst": 0.6}}, "color.contrst", "unknown key 'contrst'"),
        ({"rand_augment": {"magnitude": 31}}, "rand_augment.magnitude", "31 is not allowed here"),
        ({"rand_augment": {"operations": 0}}, "rand_augment.operations", "0 is not allowed here"),
        ({"rand_augment": True}, "rand_augment", "true is not allowed here"),
    ],
)
def test_mistakes_in_settings_are_named(options: dict[str, Any], place: str, words: str) -> None:
    value, problems = validate(AugmentSettings, options)
    assert value is None
    assert [".".join(map(str, p.location)) for p in problems] == [place]
    assert words in problems[0].message
    assert problems[0].hint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_sees_the_same_pixels() -> None:
    gpu = torch.device("cuda")
    data = table(channels=3)
    world = World({}, {}, HEADS, {"image": measure(data.inputs["image"])})
    on_cpu, on_gpu = Feed(world, data, views(**EVERYTHING), CPU), Feed(world, data.to(gpu), views(**EVERYTHING), gpu)
    for feed in (on_cpu, on_gpu):
        feed.start_epoch(1, torch.arange(70))
    a, b = on_cpu.batch(torch.arange(70)), on_gpu.batch(torch.arange(70))
    assert all(torch.equal(a[name], b[name].cpu()) for name in a)
