"""The one trainer: equal to a hand-written loop, frozen guides, resume in the middle (the three tests of PHASES.md)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.table import Table
from edgekd.data.views import Views, permutation
from edgekd.distill.knowledge import kd
from edgekd.distill.schemes.offline import offline, supervised
from edgekd.distill.settings import DistillationSettings
from edgekd.errors import ConfigError, TrainingError
from edgekd.tasks import heads_of
from edgekd.train.evaluate import score
from edgekd.train.phase import mix_seed
from edgekd.train.trainer import Epoch, Run, train
from edgekd.train.world import Copy, Follow, Fresh, Model, Move, Optim, Phase, Term, Watch, World

HEADS = heads_of("classification", ("label",))
OPTIM = Optim("sgd", lr=0.1, weight_decay=1e-3, warmup=1.0)


class Net(nn.Module):
    """BatchNorm and dropout: whatever mode or seed is wrong shows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def make_net(width: int, seed: int) -> Model:
    torch.manual_seed(seed)
    return Model(Net(width), ("image",), ("logits",), fresh=lambda: Net(width))


def make_table(rows: int = 70) -> Table:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(3, (rows,), generator=generator)
    image = torch.randn(rows, 1, 5, 5, generator=generator) + label.reshape(-1, 1, 1, 1)
    return Table({"image": image}, {"label": label}, torch.arange(rows))


def make_world() -> World:
    tables = {"train": make_table(), "validation": make_table(40)}
    return World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, tables, HEADS)


def make_run(folder: Path | None = None, tell: object = None, precision: str = "f32") -> Run:
    return Run(7, 16, torch.device("cpu"), precision, Views(None, 7), folder, tell)  # type: ignore[arg-type]


def state(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def offline_phases(epochs: int = 3, keep: str | None = None) -> list[Phase]:
    return offline(HEADS, DistillationSettings(), OPTIM, epochs, keep)


def test_offline_distillation_equals_a_hand_written_loop_bit_for_bit() -> None:
    world = make_world()
    train(world, offline_phases(), make_run())

    by_hand = make_world()
    teacher, student = by_hand.models["teacher"].network.eval(), by_hand.models["student"].network.train()
    student.to(memory_format=torch.channels_last)
    teacher.to(memory_format=torch.channels_last)
    table, steps, epochs = by_hand.tables["train"], 5, 3  # 70 rows in equal steps of at most 16
    decayed = [p for p in student.parameters() if p.dim() > 1]
    plain = [p for p in student.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        order = permutation(7, "order/0", epoch, 70)
        for step in range(steps):
            at = epoch * steps + step
            rate = 0.1 * (at + 1) / (steps + 1)
            if at >= steps:
                rate = 0.1 * 0.5 * (1 + math.cos(math.pi * (at - steps) / (steps * 2)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = table.take(order[step * 14 : step * 14 + 14])
            x = rows.inputs["image"].contiguous(memory_format=torch.channels_last)
            torch.default_generator.manual_seed(mix_seed(7, 0, f"{at}/0"))
            optimizer.zero_grad()
            logits = student(x)
            with torch.no_grad():
                target = teacher(x)
            loss = 0.1 * nn.functional.cross_entropy(logits, rows.targets["label"]) + 0.9 * kd(logits, target)
            loss.backward()
            optimizer.step()
    assert same(state(world.models["student"]), student.state_dict())


def test_the_teacher_keeps_its_weights_and_statistics_and_stays_in_evaluation_mode() -> None:
    world = make_world()
    before = state(world.models["teacher"])
    seen: list[bool] = []
    world.models["teacher"].network.register_forward_hook(lambda module, *_: seen.append(module.training))
    train(world, offline_phases(), make_run())
    assert same(before, state(world.models["teacher"]))
    assert seen
    assert not any(seen)
    assert not any(p.grad is not None for p in world.models["teacher"].network.parameters())


class Killed(Exception):
    """Stands for a process that dies right after an epoch."""


def born_again() -> list[Phase]:
    """A network learns, becomes the teacher by a copy, and is trained afresh from that teacher."""
    terms = offline_phases()[0].moves[0].terms
    return [
        *supervised("student", HEADS, OPTIM, 2, "student"),
        Phase("hand over", start=(Copy("student", "elder"),)),
        Phase("again", (Move({"student": OPTIM}, terms),), 3, (Copy("elder", "teacher"), Fresh("student"))),
    ]


def assistant() -> list[Phase]:
    """The teacher is trained first, the best epoch is kept, then it teaches."""
    terms = offline_phases()[0].moves[0].terms
    return [
        *supervised("teacher", HEADS, OPTIM, 2, "teacher"),
        Phase("again", (Move({"student": OPTIM}, terms),), 3, (Fresh("student"),)),
    ]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("scheme", [born_again, assistant])
def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(
    tmp_path: Path, stop_after: int, precision: str, scheme: Callable[[], list[Phase]]
) -> None:
    phases = scheme()
    whole = make_world()
    curves = train(whole, phases, make_run(precision=precision))

    epochs = 0

    def die(epoch: Epoch) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == stop_after:
            raise Killed

    with pytest.raises(Killed):
        train(make_world(), phases, make_run(tmp_path, die, precision))
    resumed = make_world()
    ran: list[Epoch] = []
    assert train(resumed, phases, make_run(tmp_path, ran.append, precision)) == curves
    assert len(ran) == 5 - stop_after
    for name in ("teacher", "student"):
        assert same(state(whole.models[name]), state(resumed.models[name]))


def test_a_finished_run_is_restored_from_its_checkpoint_without_training(tmp_path: Path) -> None:
    first, second = make_world(), make_world()
    train(first, offline_phases(), make_run(tmp_path))
    ran: list[Epoch] = []
    train(second, offline_phases(), make_run(tmp_path, ran.append))
    assert ran == []
    assert same(state(first.models["student"]), state(second.models["student"]))


def test_a_damaged_checkpoint_starts_over(tmp_path: Path) -> None:
    first, second = make_world(), make_world()
    train(first, offline_phases(), make_run(tmp_path))
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    train(second, offline_phases(), make_run(tmp_path))
    assert same(state(first.models["student"]), state(second.models["student"]))


def test_the_best_epoch_on_validation_is_kept() -> None:
    world = make_world()
    phase = offline_phases(6, keep="student")
    curves = train(world, phase, make_run())
    accuracies = curves[0]["metrics"]["accuracy"]
    kept = score(world, "student", world.tables["validation"], torch.device("cpu"))["accuracy"].value
    assert kept == max(accuracies)
    assert accuracies[-1] <= kept


def test_models_that_follow_and_copies_learn_as_their_rules_say() -> None:
    world = make_world()
    move = Move(
        {"student": OPTIM, "shadow": Follow("student", 0.0)},
        supervised("student", HEADS, OPTIM, 1, None)[0].moves[0].terms,
    )
    train(world, [Phase("ema", (move,), 1, (Copy("student", "shadow"),))], make_run())
    assert same(state(world.models["student"]), state(world.models["shadow"]))
    assert not same(state(world.models["student"]), state(make_world().models["student"]))


def test_a_tap_reads_what_the_module_got_or_gave() -> None:
    world = make_world()
    world.models["twin"] = copy.deepcopy(world.models["teacher"])
    same_feature = Term("mse_logits", "teacher.body", "twin.body", label="feature")
    same_input = Term("mse_logits", "teacher.head:in", "twin.head:in", label="input")
    frozen = Optim("sgd", lr=1e-30)
    for model in (world.models["teacher"], world.models["twin"]):
        model.network.body[3].p = 0.0  # type: ignore[union-attr, index]
        model.network.body[1].momentum = 0.0  # type: ignore[union-attr, index]
        model.network.body[1].track_running_stats = False  # type: ignore[union-attr, index]
        model.network.body[1].running_mean = model.network.body[1].running_var = None  # type: ignore[union-attr, index]
    phase = Phase("p", (Move({"teacher": frozen}, (same_feature, same_input)),), 1)
    terms = train(world, [phase], make_run())[0]["terms"]
    assert terms == {"feature": [0.0], "input": [0.0]}


def test_a_tap_with_a_wrong_name_lists_the_nearest() -> None:
    bad = Term("mse_logits", "student.bdy", "teacher")
    with pytest.raises(ConfigError, match="no module 'bdy'") as caught:
        train(make_world(), [Phase("p", (Move({"student": OPTIM}, (bad,)),), 1)], make_run())
    assert "body" in str(caught.value.hint)


def test_a_loss_that_is_not_finite_names_the_term_and_the_epoch() -> None:
    world = make_world()
    hot = Optim("sgd", lr=1e30)
    with pytest.raises(TrainingError, match=r"'cross_entropy' is not finite \(phase supervised, epoch"):
        train(world, supervised("student", HEADS, hot, 5, None), make_run())


def test_a_term_that_names_nothing_is_an_error_before_any_step() -> None:
    world = make_world()
    term = Term("cross_entropy", "student", also={"target": "lable"})
    with pytest.raises(ConfigError, match="'lable', which is neither a model nor a column"):
        train(world, [Phase("p", (Move({"student": OPTIM}, (term,)),), 1)], make_run())


def test_guides_are_in_evaluation_mode_in_every_move_also_when_they_learn_in_another() -> None:
    world = make_world()
    seen: dict[str, list[bool]] = {"teacher": [], "student": []}
    for name, modes in seen.items():
        world.models[name].network.register_forward_hook(lambda module, *_, modes=modes: modes.append(module.training))
    world.tables.pop("validation")
    moves = (
        Move({"student": OPTIM}, (Term("kd", "student", "teacher"),)),
        Move({"teacher": OPTIM}, (Term("kd", "teacher", "student"),)),
    )
    train(world, [Phase("mutual", moves, 1)], make_run())
    assert seen["student"] == [True, False] * 5
    assert seen["teacher"] == [False, True] * 5


def test_a_network_without_anything_to_learn_is_an_error_of_one_line() -> None:
    world = make_world()
    world.models["student"].network.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter that learns"):
        train(world, offline_phases(), make_run())


def test_ramps_and_every_take_effect() -> None:
    def run(*terms: Term, every: int = 1) -> dict[str, Tensor]:
        world = make_world()
        world.tables.pop("validation")
        train(world, [Phase("p", (Move({"student": OPTIM}, terms, every),), 1, watch=Watch("student"))], make_run())
        return state(world.models["student"])

    ce = Term("cross_entropy", "student", also={"target": "label"})
    silent = Term("kd", "student", "teacher", ramp=(5.0, 6.0))
    assert same(run(ce), run(ce, silent))
    assert not same(run(ce), run(ce, Term("kd", "student", "teacher")))
    assert not same(run(ce), run(ce, every=2))
