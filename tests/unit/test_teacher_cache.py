"""The teacher cache: exact, filled in full batches, safe to share, bounded."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import HEADS, OPTIM, make_net, make_table, offline_phases, same, state
from torch import Tensor

from edgekd.data.settings import AugmentSettings
from edgekd.data.table import Table
from edgekd.data.views import Views
from edgekd.distill.teacher_cache import Head, TeacherCache, open_cache, row_bytes
from edgekd.store import Store
from edgekd.train.edits import Subset
from edgekd.train.trainer import Run, train
from edgekd.train.world import Move, Phase, Term, World

VIEWS = Views(AugmentSettings(crop=1, flip=True, views=4), 7)


def cache_in(folder: Path, dtype: str = "f32", *, top_k: int = 0, classes: int = 3, views: int = 4) -> TeacherCache:
    heads = [Head("logits", (classes,), top_k)]
    limits: dict[str, Any] = {"ids": torch.arange(73), "views": views, "max_bytes": 10**9}
    cache, words = open_cache(Store(folder), {"teacher": "a"}, heads, dtype=dtype, **limits)
    assert cache is not None, words
    return cache


def distil(
    cache: TeacherCache | None, epochs: int, precision: str = "f32"
) -> tuple[World, list[dict[str, Any]], list[int]]:
    """A distillation run with augmentation; also the size of every batch that the teacher saw."""
    world = World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, {"train": make_table(73)}, HEADS)
    sizes: list[int] = []
    world.models["teacher"].network.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    run = Run(7, 16, torch.device("cpu"), precision, VIEWS, caches={"teacher": cache} if cache else {})
    curves = train(world, offline_phases(epochs), run)
    return world, curves, sizes


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_cached_run_equals_a_live_one_bit_for_bit(tmp_path: Path, precision: str) -> None:
    live, live_curves, live_sizes = distil(None, 6, precision)
    cache = cache_in(tmp_path)
    for _ in range(2):  # cold, then warm
        cached, curves, sizes = distil(cache, 6, precision)
        assert curves == live_curves
        assert same(state(cached.models["student"]), state(live.models["student"]))
    assert len(live_sizes) == 6 * 5  # 73 rows in steps of 14 and 15
    assert sizes == []


def test_the_teacher_is_asked_in_full_batches_and_once_for_each_sample_and_view(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    _, _, sizes = distil(cache, 6)
    assert set(sizes) == {15}
    assert len(sizes) < 6 * 5
    # Four epochs' worth of views is all there is; one more row at most is computed twice to fill a batch.
    _, _, again = distil(cache, 30)
    assert 15 * (len(sizes) + len(again)) <= 73 * 4 + 15 * 30
    _, _, never = distil(cache, 30)
    assert never == []


def test_half_precision_storage_stays_within_a_hundredth(tmp_path: Path) -> None:
    _, live, _ = distil(None, 4)
    _, rounded, _ = distil(cache_in(tmp_path, "f16"), 4)
    for name, values in live[0]["terms"].items():
        assert rounded[0]["terms"][name] == pytest.approx(values, rel=1e-2)


def test_a_cache_is_not_used_for_a_model_that_learns_or_is_looked_into(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    for term in (Term("mse_logits", "student", "teacher.head"), Term("kd", "student", "teacher")):
        world = World({"teacher": make_net(4, 1), "student": make_net(4, 2)}, {"train": make_table()}, HEADS)
        learn = {"student": OPTIM} if term.knowledge == "mse_logits" else {"student": OPTIM, "teacher": OPTIM}
        run = Run(7, 16, torch.device("cpu"), "f32", VIEWS, caches={"teacher": cache})
        train(world, [Phase("p", (Move(learn, (term,)),), 1)], run)
        assert cache.filled() == 0


@pytest.mark.parametrize("first_id", [0, 20, 1 << 40])
def test_a_cache_is_not_asked_about_a_table_that_took_a_cached_name(tmp_path: Path, first_id: int) -> None:
    live, cached = (_under_one_name(cache, first_id) for cache in (None, cache_in(tmp_path)))
    assert same(state(live.models["student"]), state(cached.models["student"]))


def _under_one_name(cache: TeacherCache | None, first_id: int) -> World:
    """A student taught on the table `train`, then on half of another, then on half of that, all named `train`."""
    train_on, other = make_table(73), make_table(140)
    # The last rows: equal numbers of samples are not equal samples.
    other = Table({"image": other.inputs["image"][60:]}, {"label": other.targets["label"][60:]}, torch.arange(80))
    other = Table(other.inputs, other.targets, other.ids + first_id)
    models = {"teacher": make_net(8, 1), "student": make_net(4, 2)}
    world = World(models, {"train": train_on, "unlabelled": other}, HEADS)
    (phase,) = offline_phases(2)
    half = replace(phase, name="half", start=(Subset("unlabelled", "train", 0.5),))
    quarter = replace(phase, name="quarter", start=(Subset("train", "train", 0.5),))
    run = Run(7, 16, torch.device("cpu"), "f32", VIEWS, caches={"teacher": cache} if cache else {})
    train(world, [phase, half, quarter], run)
    return world


def test_a_cache_is_asked_about_a_part_of_its_table_under_any_name(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    distil(cache, 4)
    world = World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, {"train": make_table(73)}, HEADS)
    asked: list[int] = []
    world.models["teacher"].network.register_forward_hook(lambda _, args, __: asked.append(len(args[0])))
    run = Run(7, 16, torch.device("cpu"), "f32", VIEWS, caches={"teacher": cache})
    (phase,) = offline_phases(4)
    train(world, [replace(phase, data="part", start=(Subset("train", "part", 0.5),))], run)
    assert asked == []


def test_samples_of_another_table_are_never_there(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    everything = torch.arange(73)
    cache.write(everything, torch.zeros_like(everything), {"logits": torch.randn(73, 3)})
    ids = torch.tensor([-1, 0, 72, 73, 1 << 40])
    assert cache.missing(ids, torch.zeros_like(ids)).tolist() == [True, False, False, True, True]
    for ask in (cache.read, lambda ids, slots: cache.write(ids, slots, {"logits": torch.ones(5, 3)})):
        with pytest.raises(KeyError):
            ask(ids, torch.zeros_like(ids))
    assert cache.filled() == 73


def test_what_was_written_is_read_by_another_process_and_half_a_row_is_a_miss(tmp_path: Path) -> None:
    ids, slots = torch.arange(10), torch.arange(10) % 4
    logits = torch.randn(10, 3)
    cache = cache_in(tmp_path)
    assert cache.missing(ids, slots).all()
    cache.write(ids, slots, {"logits": logits})
    other = cache_in(tmp_path)
    assert not other.missing(ids, slots).any()
    assert other.missing(ids, (slots + 1) % 4).all()
    assert torch.equal(other.read(ids, slots)["logits"], logits)
    cache._rows[5 * 4 + 1, 0] ^= 1
    assert other.missing(ids, slots).tolist() == [i == 5 for i in range(10)]


def test_zeros_are_a_value_and_not_a_hole(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache.write(torch.tensor([0]), torch.tensor([0]), {"logits": torch.zeros(1, 3)})
    assert not cache.missing(torch.tensor([0]), torch.tensor([0])).any()


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.double(), 1)


def test_top_k_keeps_the_largest_probabilities_and_shares_the_rest_evenly(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, top_k=5, classes=100)
    logits = 3 * torch.randn(20, 100)
    ids, slots = torch.arange(20), torch.zeros(20, dtype=torch.int64)
    cache.write(ids, slots, {"logits": logits})
    found, expected = softmax(cache.read(ids, slots)["logits"]), softmax(logits)
    top = expected.topk(5, 1).indices
    assert torch.allclose(found.gather(1, top), expected.gather(1, top), rtol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(20, dtype=torch.float64))
    assert row_bytes([Head("logits", (100,), 5)], "f32") < row_bytes([Head("logits", (100,))], "f32") / 5


def test_a_cache_over_its_limit_is_not_made_and_says_so(tmp_path: Path) -> None:
    heads = [Head("logits", (1000,))]
    cache, words = open_cache(
        Store(tmp_path), {}, heads, dtype="f32", ids=torch.arange(10**6), views=16, max_bytes=4 * 10**9
    )
    assert cache is None
    assert words == "live: a cache would take 64.1 GB, teacher_cache_bytes is 4 GB"
    assert not (tmp_path / "caches").exists()


def test_a_disk_that_is_too_full_is_found_when_the_cache_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    heads = [Head("logits", (3,))]
    cache, words = open_cache(
        Store(tmp_path), {}, heads, dtype="f32", ids=torch.arange(1000), views=16, max_bytes=10**9
    )
    assert cache is None
    assert words == "live: there is no space for a cache of 256 kB"


def test_other_teachers_have_other_caches(tmp_path: Path) -> None:
    store, heads = Store(tmp_path), [Head("logits", (3,))]
    first, _ = open_cache(store, {"teacher": "a"}, heads, dtype="f32", ids=torch.arange(5), views=1, max_bytes=10**6)
    second, _ = open_cache(store, {"teacher": "b"}, heads, dtype="f32", ids=torch.arange(5), views=1, max_bytes=10**6)
    assert first is not None
    assert second is not None
    row = torch.tensor([0]), torch.tensor([0])
    first.write(*row, {"logits": torch.ones(1, 3)})
    assert second.missing(*row).all()
