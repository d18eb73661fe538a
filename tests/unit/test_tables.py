"""Further tables of a data set, and labels that are scarce."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_sets import encoded, image_folder, npz_set, opened, parquet_set, picture, same, write_parquet
from PIL import Image

from edgekd.config import validate
from edgekd.data import DataSettings
from edgekd.data.settings import TABLE_IDS, AugmentSettings, first_id
from edgekd.data.views import Views
from edgekd.errors import ConfigError, DataError
from edgekd.tasks import HeadSettings
from edgekd.train.feed import SAMPLE_IDS, Feed
from edgekd.train.world import World

CPU = torch.device("cpu")
MORE = {"tables": {"more": {"npz": {"path": "more.npz"}}}}


def npz(folder: Path, n: int = 20, **arrays: Any) -> None:
    x = np.random.default_rng(1).normal(size=(n, 5))
    np.savez(folder / "more.npz", **({"x": x} | arrays))


def refused(base: Path, **options: Any) -> tuple[str, str | None]:
    with pytest.raises(ConfigError) as error:
        opened(base, **options).table("more")
    return error.value.message, error.value.hint


# What a table holds


def test_a_table_is_all_training_rows_of_its_source_and_takes_nothing_from_the_data(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    image_folder(tmp_path / "more", splits=("train", "validation", "test"), classes=("cat",))
    plain = opened(tmp_path, folder={"path": "set"})
    data = opened(tmp_path, folder={"path": "set"}, tables={"more": {"folder": {"path": "more"}}})
    table = data.table("more")
    assert len(table) == 5  # its own validation and test files are left alone
    assert table.inputs["image"].shape == (5, 3, 8, 8)
    assert data.counts() == plain.counts()
    assert data.fingerprint == plain.fingerprint
    same(data.load("train").take(torch.arange(5)), plain.load("train").take(torch.arange(5)))


def test_channels_and_size_are_those_of_the_data(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    (tmp_path / "more").mkdir()
    Image.fromarray(picture(0, 20, 30)).save(tmp_path / "more" / "0.png")
    more = {"more": {"folder": {"path": "more"}}}
    data = opened(tmp_path, folder={"path": "set"}, channels=1, size=[6, 6], tables=more)
    assert data.table("more").inputs["image"].shape == (1, 1, 6, 6)
    message, hint = refused(tmp_path, folder={"path": "set"}, tables=more)
    assert message == "data.tables.more: a row of 'image' is (3, 20, 30) uint8, in train (3, 8, 8) uint8"
    assert hint == "give `data.size: [height, width]`"


def test_a_limit_is_drawn_by_seed(tmp_path: Path) -> None:
    npz_set(tmp_path / "set")
    npz(tmp_path)
    limited = {"tables": {"more": {"npz": {"path": "more.npz"}, "limit": 7}}}
    one, again, other = (opened(tmp_path, seed, npz={"path": "set"}, **limited) for seed in (0, 0, 1))
    assert len(one.table("more")) == 7
    same(one.table("more").take(torch.arange(7)), again.table("more").take(torch.arange(7)))
    assert not torch.equal(one.table("more").ids, other.table("more").ids)
    assert one.table_fingerprint("more") != other.table_fingerprint("more")


def test_a_streamed_table_holds_what_a_resident_one_holds(tmp_path: Path) -> None:
    parquet_set(tmp_path / "set")
    parquet_set(tmp_path / "more", train=12)
    source = {"image": "img", "label": "label"}
    more = {"more": {"parquet": {"path": "more", **source}}}
    tables = [
        opened(tmp_path, parquet={"path": "set", **source}, tables=more, stream=how, workers=0).table("more")
        for how in ("never", "always")
    ]
    assert tables[1].inputs["image"].device.type == "meta"
    same(*(table.take(torch.tensor([3, 0, 11])) for table in tables))


# Labels


def test_labels_are_optional_and_the_arrays_of_the_data_are_the_default(tmp_path: Path) -> None:
    npz_set(tmp_path / "set", picture=np.zeros((30, 2)))
    npz(tmp_path, picture=np.ones((20, 2)))
    data = opened(tmp_path, npz={"path": "set", "inputs": ["picture", "x"]}, **MORE)
    assert list(data.table("more").inputs) == ["picture", "x"]
    assert dict(data.table("more").targets) == {}
    npz(tmp_path, picture=np.ones((20, 2)), y=np.arange(20) % 3)
    data = opened(tmp_path, npz={"path": "set", "inputs": ["picture", "x"]}, **MORE)
    assert data.table("more").targets["y"].tolist() == [i % 3 for i in range(20)]


def test_classes_are_counted_as_in_the_data(tmp_path: Path) -> None:
    image_folder(tmp_path / "set", classes=("ant", "cat", "dog"))
    image_folder(tmp_path / "more", splits=("train",), classes=("cat", "dog"))
    data = opened(tmp_path, folder={"path": "set"}, tables={"more": {"folder": {"path": "more"}}})
    assert data.table("more").targets["label"].tolist() == [1] * 5 + [2] * 5


def test_folders_that_are_no_classes_of_the_data_are_just_folders(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    image_folder(tmp_path / "more", splits=("train",), classes=("cat", "monday"))
    data = opened(tmp_path, folder={"path": "set"}, tables={"more": {"folder": {"path": "more"}}})
    assert dict(data.table("more").targets) == {}


def test_labels_that_are_asked_for_must_be_classes_of_the_data(tmp_path: Path) -> None:
    source = {"image": "img", "label": "label"}
    for name, labels in (("set", ["cat", "dog"]), ("more", ["cat", "cow"])):
        (tmp_path / name).mkdir()
        contents = [encoded(picture(i)) for i in range(10)]
        write_parquet(tmp_path / name / "train.parquet", contents, pa.array(labels * 5))
    data = opened(tmp_path, parquet={"path": "set", **source}, tables={"more": {"parquet": {"path": "more", **source}}})
    with pytest.raises(DataError, match=r"^data.tables.more: the class 'cow' never occurs in train$"):
        data.table("more")
    npz_set(tmp_path / "arrays")
    npz(tmp_path, y=np.full(20, 7))
    asked = {"tables": {"more": {"npz": {"path": "more.npz", "targets": ["y"]}}}}
    with pytest.raises(DataError, match=r"^data.tables.more: its row 0: the label 7 of 'y' is not below .* 3$"):
        opened(tmp_path, npz={"path": "arrays"}, **asked).table("more")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.full(20, 7), "its row 0: the label 7 of 'y' is not below"),
        (np.full(20, -1), "its row 0: "),
        (np.full(20, 0.5), "'y' is of another type than in train"),
    ],
)
def test_labels_that_nobody_asked_for_fall_away_where_they_do_not_fit(labels: Any, why: str, tmp_path: Path) -> None:
    npz_set(tmp_path / "arrays")
    npz(tmp_path, y=labels)
    data = opened(tmp_path, npz={"path": "arrays"}, **MORE)
    assert dict(data.table("more").targets) == {}
    assert data.left_out("more")["y"].startswith(why)


# Ids


def test_no_two_samples_of_data_and_tables_share_an_id(tmp_path: Path) -> None:
    npz_set(tmp_path / "set")
    npz(tmp_path)
    twice = {name: {"npz": {"path": "more.npz"}} for name in ("more", "other")}
    data = opened(tmp_path, npz={"path": "set"}, tables=twice)
    tables = [data.load("train"), data.load("validation"), data.load("test"), data.table("more"), data.table("other")]
    ids = torch.cat([table.ids for table in tables])
    assert len(torch.unique(ids)) == len(ids)
    # They follow from the name: a table more or less, or in another place, gives no sample another view.
    alone = opened(tmp_path, npz={"path": "set"}, tables={"other": twice["other"]})
    assert torch.equal(alone.table("other").ids, data.table("other").ids)
    assert alone.table_fingerprint("other") == data.table_fingerprint("other") != data.table_fingerprint("more")


def test_names_whose_ids_would_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TABLE_IDS <= first_id("a") < 1 << 62
    monkeypatch.setattr("edgekd.data.settings.first_id", lambda name: TABLE_IDS)
    tables = {name: {"digits": {}} for name in ("a", "b")}
    _, problems = validate(DataSettings, {"digits": {}, "tables": tables})
    assert problems[0].message.endswith("samples of the tables 'a' and 'b' would share ids")


def test_tables_are_augmented_and_samples_counted_from_zero_for_what_remembers_them(tmp_path: Path) -> None:
    image_folder(tmp_path / "set")
    image_folder(tmp_path / "more", splits=("train",))
    data = opened(tmp_path, folder={"path": "set"}, tables={"more": {"folder": {"path": "more"}}})
    world = World({}, {}, (HeadSettings(output="logits", task="classification", target="label"),), data.normalization())
    views = Views(AugmentSettings(crop=2, flip=True), 0)
    feeds = [Feed(world, table, views, CPU) for table in (data.load("train"), data.table("more"))]
    order = torch.tensor([4, 9, 0])
    for feed in feeds:
        feed.start_epoch(0, order[: 3 if feed is feeds[1] else 1])
    (batch,) = feeds[1].batches([3])
    assert batch[SAMPLE_IDS].tolist() == [4, 9, 0]
    assert feeds[1].samples == 10
    assert feeds[1].ids.min() >= TABLE_IDS  # what views are drawn by
    assert not torch.equal(
        batch["image"], world.normalization["image"].apply(data.table("more").take(order).inputs["image"])
    )


# Mistakes


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"tables": {"train": {"digits": {}}}}, "'train' is a split of the data itself", "another name"),
        ({"tables": {"a.b": {"digits": {}}}}, "'a.b' cannot name a table", "letters, digits"),
        ({"tables": {"a": {}}}, "tables.a: names no data source", "give one of"),
        ({"tables": {"a": {"digits": {}, "size": [8, 8]}}}, "unknown key 'size' in tables.a", "known are"),
        ({"labelled": 5, "tables": {"unlabelled": {"digits": {}}}}, "labelled makes the table 'unlabelled'", "another"),
        ({"labelled": 0}, "labelled: 0 is not allowed here", "greater than 0"),
    ],
)
def test_wrong_settings_are_explained(options: dict[str, Any], message: str, hint: str) -> None:
    value, problems = validate(DataSettings, {"digits": {}, **options})
    assert value is None
    assert len(problems) == 1
    assert message in problems[0].message
    assert hint in problems[0].hint


def test_inputs_that_are_not_those_of_the_data_are_refused(tmp_path: Path) -> None:
    npz_set(tmp_path / "set")
    source: dict[str, Any] = {"npz": {"path": "set"}}
    message, _ = refused(tmp_path, **source, **MORE)
    assert message == f"data.tables.more.npz.path: {tmp_path / 'more.npz'} does not exist"
    npz(tmp_path, z=np.zeros((20, 5)))
    assert refused(tmp_path, **source, tables={"more": {"npz": {"path": "more.npz", "inputs": ["z"]}}}) == (
        "data.tables.more: its inputs are z, the data's x",
        "a table has the inputs of the data, under the same names",
    )
    assert refused(tmp_path, **source, tables={"more": {"npz": {"path": "more.npz", "targets": ["z"]}}}) == (
        "data.tables.more: the data has no target 'z'",
        "known are: y",
    )
    npz(tmp_path, x=np.zeros((20, 4)))
    assert refused(tmp_path, **source, **MORE) == (
        "data.tables.more: a row of 'x' is (4,) float32, in train (5,) float32",
        "save both alike",
    )
    data = opened(tmp_path, **source, **MORE)
    with pytest.raises(ConfigError) as error:
        data.table("mroe")
    assert (error.value.message, error.value.hint) == (
        "the data has no table 'mroe'",
        "did you mean 'more'?",
    )
    (tmp_path / "more.npz").unlink()
    with pytest.raises(ConfigError, match=r"^data.tables.more.npz.path: "):
        data.check()


# Scarce labels


def test_a_few_labels_are_kept_in_proportion_and_the_others_are_a_table_without() -> None:
    plain = opened(Path(), digits={})
    data = opened(Path(), digits={}, labelled=50)
    train, rest, whole = data.load("train"), data.table("unlabelled"), plain.load("train")
    assert torch.bincount(train.targets["label"]).tolist() == [5] * 10
    assert dict(rest.targets) == {}
    assert torch.equal(torch.cat([train.ids, rest.ids]).sort().values, whole.ids)
    assert data.counts() == {**plain.counts(), "train": 50}
    assert data.classes() == plain.classes()
    same(data.load("validation").take(torch.arange(9)), plain.load("validation").take(torch.arange(9)))
    row = int((whole.ids == rest.ids[7]).nonzero())
    assert torch.equal(rest.inputs["image"][7], whole.inputs["image"][row])


def test_scarce_labels_are_part_of_the_data() -> None:
    def opened_with(seed: int = 0, **own: Any) -> Any:
        return opened(Path(), seed, digits={}, validation=0, **own)

    assert opened_with().fingerprint == opened_with(1).fingerprint
    found = [opened_with(labelled=50), opened_with(labelled=60), opened_with(1, labelled=50), opened_with()]
    assert len({data.fingerprint for data in found}) == 4
    assert len({data.table_fingerprint("unlabelled") for data in found[:3]}) == 3
    assert torch.equal(found[0].load("train").ids, opened_with(labelled=50).load("train").ids)


def test_a_limit_comes_before_labels_are_taken_away() -> None:
    data = opened(Path(), digits={}, labelled=50, limit={"train": 80})
    assert (len(data.load("train")), len(data.table("unlabelled"))) == (50, 30)


def test_labels_that_cannot_be_scarce_are_explained(tmp_path: Path) -> None:
    data = opened(Path(), digits={}, labelled=900)
    words = "data.labelled: 900 labels of 900 training samples leave none unlabelled"
    for ask in (data.counts, lambda: data.load("train"), lambda: data.table("unlabelled")):
        with pytest.raises(ConfigError) as error:
            ask()
        assert error.value.message == words
    npz_set(tmp_path / "set")
    with pytest.raises(ConfigError, match=r"^data.labelled: the data has no labels to keep$"):
        opened(tmp_path, npz={"path": "set", "targets": []}, labelled=5)
