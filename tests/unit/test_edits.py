"""Edits between phases: the best, the mean, and tables made of others; resumed bit for bit where models decided."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from test_trainer import (
    HEADS,
    OPTIM,
    Killed,
    Net,
    make_net,
    make_run,
    make_table,
    make_world,
    offline_phases,
    same,
    state,
)
from torch import Tensor, nn

from edgekd.data.derived import Derived, derive, origin
from edgekd.data.noise import NoiseTable
from edgekd.data.table import Rows, Table
from edgekd.distill.schemes.offline import supervised
from edgekd.errors import ConfigError, TrainingError
from edgekd.train.edits import Average, Best, Bootstrap, Noise, Relabel, Split, Subset
from edgekd.train.evaluate import outputs
from edgekd.train.run import Run
from edgekd.train.trainer import Epoch, train
from edgekd.train.world import Edit, Fresh, Model, Move, Phase, Term, World

CPU = torch.device("cpu")


class Streamed:
    """A table that gives its rows batch by batch and asks for two groups ahead, as one that is read from disk does."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.ids, self.targets = table.ids, table.targets

    @property
    def inputs(self) -> Mapping[str, Tensor]:
        return {name: x.to("meta") for name, x in self._table.inputs.items()}

    def __len__(self) -> int:
        return len(self._table)

    def take(self, rows: Tensor) -> Table:
        return self._table.take(rows)

    def batches(self, groups: Iterable[Tensor]) -> Iterator[Table]:
        rest = iter(groups)
        waiting = list(itertools.islice(rest, 2))
        while waiting:
            yield self.take(waiting.pop(0))
            waiting += itertools.islice(rest, 1)


def edited(world: World, *edits: Edit, seed: int = 3) -> World:
    for edit in edits:
        if callable(edit):
            edit(world, seed)
        else:
            edit.apply(world, edit.decide(world, make_run()))
    return world


def equal(a: Table, b: Table) -> bool:
    return same(dict(a.inputs), dict(b.inputs)) and same(dict(a.targets), dict(b.targets)) and torch.equal(a.ids, b.ids)


class Fixed(nn.Module):
    """Gives every row the class that is told, with some certainty."""

    def __init__(self, classes: Tensor, margin: float = 9.0) -> None:
        super().__init__()
        self.register_buffer("said", classes)
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        return self.margin * nn.functional.one_hot(self.said[: len(x)], 3).float()  # type: ignore[index]


def fixed(classes: Tensor, margin: float = 9.0) -> Model:
    return Model(Fixed(classes, margin), ("image",), ("logits",))


def test_the_best_model_on_validation_becomes_the_target_and_of_equals_the_first() -> None:
    world = make_world()
    right = world.tables["validation"].targets["label"]
    world.models |= {"bad": fixed((right + 1) % 3), "good": fixed(right), "also_good": fixed(right, 5.0)}
    edited(world, Best(("bad", "good", "also_good"), "chosen"))
    assert world.models["chosen"].network.margin == 9.0
    assert torch.equal(world.models["chosen"].network.said, right)  # type: ignore[arg-type]
    assert world.models["chosen"] is not world.models["good"]


def test_without_validation_the_training_split_decides_and_without_targets_the_first_is_taken() -> None:
    world = make_world()
    del world.tables["validation"]
    right = world.tables["train"].targets["label"]
    world.models |= {"bad": fixed((right + 1) % 3), "good": fixed(right)}
    assert Best(("bad", "good"), "chosen").decide(world, make_run()) == {"model": "good"}
    table = world.tables["train"]
    assert isinstance(table, Table)
    world.tables["train"] = Table(table.inputs, {}, table.ids)
    assert Best(("bad", "good"), "chosen").decide(world, make_run()) == {"model": "bad"}


def test_an_average_is_the_mean_of_weights_and_buffers() -> None:
    world = World({"a": make_net(4, 1), "b": make_net(4, 2), "wide": make_net(8, 3)}, {}, HEADS)
    world.models["b"].network.body[1].running_mean.fill_(2.0)  # type: ignore[index, union-attr, operator]
    world.models["b"].network.body[1].num_batches_tracked.fill_(7)  # type: ignore[index, union-attr, operator]
    edited(world, Average(("a", "b"), "mean"), Average(("a", "b"), "mostly_b", (1.0, 3.0)))
    a, b = state(world.models["a"]), state(world.models["b"])
    for name, value in state(world.models["mean"]).items():
        assert torch.allclose(value, (a[name] + b[name]) / 2 if value.is_floating_point() else a[name])
    mostly = state(world.models["mostly_b"])
    assert torch.allclose(mostly["head.weight"], (a["head.weight"] + 3 * b["head.weight"]) / 4)
    assert torch.allclose(mostly["body.1.running_mean"], torch.tensor(1.5))
    with pytest.raises(ConfigError, match="not networks of one kind"):
        edited(world, Average(("a", "wide"), "mean"))


def test_a_bootstrap_draws_as_many_rows_with_replacement_others_for_each_target_the_same_each_time() -> None:
    world, again = make_world(), make_world()
    for one in (world, again):
        edited(one, Bootstrap("train", "first"), Bootstrap("train", "second"))
    first, second = world.tables["first"], world.tables["second"]
    assert len(first) == len(second) == 70
    assert 30 < len(first.ids.unique()) < 60  # about 1 - 1 / e of them
    assert not torch.equal(first.ids, second.ids)
    assert torch.equal(first.ids, again.tables["first"].ids)
    edited(again, Bootstrap("train", "first"), seed=4)
    assert not torch.equal(first.ids, again.tables["first"].ids)
    rows = torch.arange(70)
    assert equal(first.take(rows), world.tables["train"].take(first.ids))


def test_a_subset_has_the_classes_and_the_share_that_were_asked_for() -> None:
    world = edited(make_world(), Subset("train", "two", classes=(0, 2)), Subset("train", "half", 0.5))
    label = world.tables["train"].targets["label"]
    assert torch.equal(world.tables["two"].ids, torch.nonzero(label != 1).flatten())
    half = world.tables["half"]
    assert len(half) == len(half.ids.unique()) == 35
    with pytest.raises(ConfigError, match="no column 'y' of classes") as caught:
        edited(world, Subset("train", "some", classes=(1,), column="y"))
    assert caught.value.hint == "its columns are: label"
    with pytest.raises(ConfigError, match="no table 'test'"):
        edited(world, Subset("test", "some"))


@pytest.mark.parametrize("concentration", [None, 0.1, 100.0])
def test_a_split_deals_out_every_row_once(concentration: float | None) -> None:
    names = ("a", "b", "c", "d")
    world = edited(make_world(), Split("train", names, concentration, least=3))
    ids = torch.cat([world.tables[name].ids for name in names])
    assert sorted(ids.tolist()) == list(range(70))
    assert min(len(world.tables[name]) for name in names) >= 3


def test_a_small_concentration_leaves_each_client_few_classes() -> None:
    def largest(concentration: float) -> float:
        world = edited(make_world(), Split("train", ("a", "b", "c"), concentration, least=5))
        found = [torch.bincount(world.tables[name].targets["label"], minlength=3) for name in "abc"]
        return sum(float(counts.max() / counts.sum()) for counts in found) / 3

    assert largest(0.1) > 0.75
    assert largest(1000.0) < 0.55
    with pytest.raises(ConfigError, match="each of 3 has 30 rows"):
        edited(make_world(), Split("train", ("a", "b", "c"), 0.5, least=30))


def test_pseudo_labels_are_what_the_model_says_and_only_confident_ones_stay() -> None:
    world = make_world()
    train(world, supervised("teacher", HEADS, OPTIM, 3, None), make_run())
    logits = outputs(world, "teacher", world.tables["train"], CPU)["logits"]
    sure = logits.softmax(1).amax(1) >= 0.7
    assert 0 < int(sure.sum()) < 70
    edited(
        world, Relabel("teacher", "train", "all", "label"), Relabel("teacher[logits]", "train", "sure", "guess", 0.7)
    )
    assert torch.equal(world.tables["all"].targets["label"], logits.argmax(1))
    kept = world.tables["sure"]
    assert torch.equal(kept.ids, torch.nonzero(sure).flatten())
    assert torch.equal(kept.targets["guess"], logits.argmax(1)[sure])
    assert torch.equal(kept.targets["label"], world.tables["train"].targets["label"][sure])
    with pytest.raises(TrainingError, match="sure of no row of train"):
        edited(world, Relabel("teacher", "train", "sure", "guess", 0.999999))
    with pytest.raises(ConfigError, match="no model 'techer'"):
        edited(world, Relabel("techer", "train", "sure", "guess"))


def test_soft_labels_of_several_models_are_their_mean_output() -> None:
    world = make_world()
    edited(world, Relabel(("teacher", "student"), "train", "both", "said", soft=True))
    found = [outputs(world, name, world.tables["train"], CPU)["logits"] for name in ("teacher", "student")]
    assert torch.equal(world.tables["both"].targets["said"], torch.stack(found).mean(0))


@pytest.mark.parametrize("wrap", [lambda table: table, Streamed])
def test_edits_of_edits_read_the_same_rows_from_resident_and_streamed_tables(wrap: type) -> None:
    base: Rows = wrap(make_table())
    first = derive(base, torch.tensor([5, 5, 9, 30, 1]), {"mark": torch.arange(5)})
    second = derive(first, torch.tensor([4, 0, 3]), {"label": torch.tensor([7, 8, 9])})
    assert origin(second) is base and isinstance(second, Derived)
    assert len(second) == 3
    assert second.ids.tolist() == [1, 5, 30]
    assert second.inputs["image"].shape == (3, 1, 5, 5)
    rows = second.take(torch.tensor([2, 0]))
    assert torch.equal(rows.inputs["image"], make_table().inputs["image"][[30, 1]])
    assert rows.targets["mark"].tolist() == [3, 4]
    assert rows.targets["label"].tolist() == [9, 7]
    assert second.targets["mark"].tolist() == [4, 0, 3]
    groups = [torch.tensor([0]), torch.tensor([2, 1]), torch.tensor([1]), torch.tensor([0, 1, 2])]
    for group, part in zip(groups, second.batches(iter(groups)), strict=True):
        assert equal(part, second.take(group))


def test_noise_is_normal_the_same_in_any_batch_and_new_in_each_epoch() -> None:
    table = NoiseTable("noise", 4000, (5,), seed=3)
    whole = table.take(torch.arange(4000)).inputs["noise"]
    assert whole.shape == (4000, 5) and whole.dtype == torch.float32
    assert abs(float(whole.mean())) < 0.02 and abs(float(whole.std()) - 1) < 0.02
    assert abs(float(torch.corrcoef(whole.T).fill_diagonal_(0).abs().max())) < 0.06
    some = torch.tensor([17, 3999, 17])
    assert torch.equal(next(table.batches([some])).inputs["noise"], whole[some])
    assert not torch.equal(table.at(1).take(some).inputs["noise"], whole[some])
    assert not torch.equal(NoiseTable("noise", 4000, (5,), seed=4).take(some).inputs["noise"], whole[some])
    world = edited(make_world(), Noise("made", "z", (2, 3), 10))
    assert world.tables["made"].inputs["z"].shape == (10, 2, 3)


def test_models_that_start_afresh_in_one_phase_start_differently() -> None:
    world = World({"a": make_net(4, 1), "b": make_net(4, 1)}, {"train": make_table()}, HEADS)
    train(world, [Phase("p", start=(Fresh("a"), Fresh("b")))], make_run())
    assert not same(state(world.models["a"]), state(world.models["b"]))


def decided_phases() -> list[Phase]:
    """Peers of two sizes learn, the better one labels what it is sure of, and another learns a bootstrap of that."""
    guess = Term("cross_entropy", "student", also={"target": "guess"})
    label = (
        Best(("teacher", "wide"), "labeller"),
        Relabel("labeller", "train", "sure", "guess", 0.5),
        Bootstrap("sure", "drawn"),
        Subset("drawn", "drawn", 0.9),
    )
    return [
        *supervised("teacher", HEADS, OPTIM, 1, None),
        *supervised("wide", HEADS, OPTIM, 2, None),
        Phase("label", start=label),
        Phase("learn", (Move({"student": OPTIM}, (guess,)),), 2, data="drawn"),
        Phase("again", (Move({"student": OPTIM}, (guess,)),), 2, (Relabel("student", "drawn", "own", "guess"),), "own"),
    ]


def decided_world() -> World:
    world = make_world()
    world.models["wide"] = Model(Net(16), ("image",), ("logits",), fresh=lambda: Net(16))
    for parameter in world.models["wide"].network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return world


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5, 6, 7])
def test_a_run_that_was_killed_after_models_decided_ends_with_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    whole = decided_world()
    curves = train(whole, decided_phases(), make_run())
    assert 10 < len(whole.tables["sure"]) < 70
    epochs = 0

    def die(epoch: Epoch) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == stop_after:
            raise Killed

    with pytest.raises(Killed):
        train(decided_world(), decided_phases(), make_run(tmp_path, die))
    resumed = decided_world()
    assert train(resumed, decided_phases(), make_run(tmp_path)) == curves
    for name in ("teacher", "wide", "student", "labeller"):
        assert same(state(whole.models[name]), state(resumed.models[name]))
    for name in ("sure", "drawn", "own"):
        table, other = whole.tables[name], resumed.tables[name]
        assert torch.equal(table.ids, other.ids)
        assert torch.equal(table.targets["guess"], other.targets["guess"])


def test_a_checkpoint_keeps_columns_and_rows_and_no_inputs(tmp_path: Path) -> None:
    train(decided_world(), decided_phases(), make_run(tmp_path))
    content = torch.load(io.BytesIO((tmp_path / "checkpoint.pt").read_bytes()[32:]), weights_only=True)
    assert {key: sorted(value) for key, value in content["decisions"].items()} == {
        "2/0": ["model"],
        "2/1": ["rows", "values"],
        "4/0": ["rows", "values"],
    }


class Refusing:
    """A cache that must not be asked."""

    def missing(self, ids: Tensor, slots: Tensor) -> Tensor:
        raise AssertionError

    read = write = missing


def test_a_cache_is_not_asked_about_a_model_that_an_earlier_phase_changed_or_about_other_samples() -> None:
    again = offline_phases(1)[0]
    changed = [*supervised("teacher", HEADS, OPTIM, 1, None), again]
    elsewhere = [Phase("elsewhere", again.moves, 1, data="validation")]
    for phases in (changed, elsewhere):
        base = make_run()
        run = Run(base.seed, base.batch, base.device, base.precision, base.views, caches={"teacher": Refusing()})  # type: ignore[dict-item]
        train(make_world(), phases, run)
