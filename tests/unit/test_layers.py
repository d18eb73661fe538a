"""Knowledge of layers through the trainer: pairs that are found, adapters that learn beside the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import HEADS, OPTIM, make_net, make_run, make_table, same, state
from torch import Tensor, nn

from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.pairing import pair, stages_of
from edgekd.distill.schemes.offline import offline
from edgekd.distill.settings import DistillationSettings
from edgekd.errors import ConfigError
from edgekd.models.resolve import build
from edgekd.train.distributed import Ranks
from edgekd.train.objective import Objective, Part
from edgekd.train.references import Taps
from edgekd.train.trainer import train
from edgekd.train.world import Model, Move, Phase, Term, World

IMAGE = {"image": torch.zeros(2, 3, 32, 32)}


def zoo(name: str) -> Model:
    network = build(name, {}, Path(), {"num_classes": 10, "in_channels": 3, "image_size": 32})
    return Model(network, ("image",), ("logits",))


def found(knowledge: str, student: str, teacher: str) -> tuple[tuple[str, str], ...]:
    return pair(stages_of(zoo(student), IMAGE), stages_of(zoo(teacher), IMAGE), knowledge)


def test_stages_of_one_size_are_paired() -> None:
    assert found("attention", "resnet8", "resnet56") == tuple((f"layer{i}", f"layer{i}") for i in (1, 2, 3))
    assert found("hint", "resnet8", "resnet56") == (("layer2", "layer2"),)
    assert found("similarity", "resnet8x4", "wrn_16_2")[0][0] == "layer3"
    assert found("crd", "resnet8", "vgg8")[0][0] == "fc:in"
    assert all(found("attention", "mobilenetv2", "resnet20"))


def test_networks_that_share_no_size_and_no_embedding_are_told_so() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 10, 5, stride=5)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x).mean((2, 3))

    plain, other = stages_of(Model(Plain(), ("image",), ("y",)), IMAGE), stages_of(zoo("resnet8"), IMAGE)
    with pytest.raises(ConfigError, match=r"attention: no stage of the student \(body 10x6x6\) fits .*layer3 64x8x8"):
        pair(plain, other, "attention")
    with pytest.raises(ConfigError, match="the student has no linear layer"):
        pair(plain, other, "rkd")


def phases(*knowledge: dict[str, Any], epochs: int = 3) -> list[Phase]:
    items = tuple(KnowledgeSettings.model_validate(item, strict=False) for item in knowledge)
    settings = DistillationSettings(knowledge=items)
    layers = {"crd": (("head:in", "head:in"),), "rkd": (("head:in", "head:in"),)}
    return offline(HEADS, settings, OPTIM, epochs, None, pairs=lambda item: layers.get(item.name, (("body", "body"),)))


def world() -> World:
    return World({"teacher": make_net(8, 1), "student": make_net(4, 2)}, {"train": make_table()}, HEADS)


ALL = ({"kd": {}}, {"hint": {"weight": 1.0}}, {"vid": {}}, {"crd": {"negatives": 20}}, {"rkd": {}}, {"review": {}})


def test_adapters_learn_beside_the_student_and_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = world()
    names = [*state(whole.models["student"])]
    frozen = state(whole.models["teacher"])
    curves = train(whole, phases(*ALL), make_run())
    adapters = {name for name in whole.models if name.startswith("adapter")}
    assert len(adapters) == 4
    assert same(frozen, state(whole.models["teacher"]))
    assert [*state(whole.models["student"])] == names  # nothing of an adapter reaches the student
    losses = curves[0]["terms"]
    assert losses["hint"][-1] < losses["hint"][0]

    def die(epoch: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world(), phases(*ALL), make_run(tmp_path, die))
    resumed = world()
    assert train(resumed, phases(*ALL), make_run(tmp_path)) == curves
    for name in (*adapters, "student"):
        assert same(state(resumed.models[name]), state(whole.models[name])), name


def test_an_adapter_goes_on_in_the_next_phase_also_after_a_resume(tmp_path: Path) -> None:
    two = [*phases({"vid": {}}, epochs=2), *phases({"vid": {}}, epochs=2)]
    whole = world()
    curves = train(whole, two, make_run())
    told: list[object] = []

    def die_in_the_second(epoch: object) -> None:
        told.append(epoch)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(world(), two, make_run(tmp_path, die_in_the_second))
    resumed = world()
    assert train(resumed, two, make_run(tmp_path)) == curves
    adapter = next(name for name in whole.models if name.startswith("adapter"))
    assert same(state(resumed.models[adapter]), state(whole.models[adapter]))


def test_a_layer_that_is_not_there_names_its_neighbours() -> None:
    items = (KnowledgeSettings.model_validate({"hint": {"layers": ["bodi", "body"]}}, strict=False),)
    settings = DistillationSettings(knowledge=items)
    with pytest.raises(ConfigError, match="student has no module 'bodi'") as error:
        train(world(), offline(HEADS, settings, OPTIM, 1, None), make_run())
    assert "body" in str(error.value.hint)


def test_a_ramp_begins_with_nothing() -> None:
    plain, ramped = world(), world()
    train(plain, phases({"kd": {"weight": 0.0}}, epochs=1), make_run())
    train(ramped, phases({"kd": {"ramp": 1e9}}, epochs=1), make_run())
    found_, expected = state(ramped.models["student"]), state(plain.models["student"])
    assert all(torch.allclose(found_[name], value, atol=1e-5) for name, value in expected.items())


def test_a_ramp_rises_in_a_line_and_stays_at_the_weight() -> None:
    made, texts = world(), ("student", "teacher")
    found = {"ramped": Term("kd", *texts, weight=0.5, ramp=(2.0, 22.0)), "whole": Term("kd", *texts, weight=0.5)}
    batch = dict(made.tables["train"].take(torch.arange(8)).inputs)
    for model in made.models.values():
        model.network.eval()
    totals = {}
    for name, term in found.items():
        move, taps = Move({"student": OPTIM}, (term,)), Taps(made, [])
        objective = Objective(made, move, taps, "f32", torch.device("cpu"), Ranks())
        parts = [Part(epoch, 0, 8, 8, 8, 1.0) for epoch in (0.0, 2.0, 7.0, 12.5, 22.0, 40.0)]
        totals[name] = [objective(batch, {}, part)[0].item() for part in parts]
    assert totals["ramped"] == pytest.approx([r * totals["whole"][0] for r in (0.0, 0.0, 0.25, 0.525, 1.0, 1.0)])


def test_labels_and_sample_numbers_reach_the_knowledge_that_wants_them() -> None:
    terms = {term.knowledge: term for term in phases({"dkd": {}}, {"crd": {}}, {"kd": {}})[0].moves[0].terms}
    assert terms["dkd"].also == {"target": "label"}
    assert terms["crd"].also == {"target": "label", "index": "sample_ids"}
    assert terms["kd"].also == {}
    assert terms["dkd"].ramp == (0.0, 20.0)
    unlabelled = [head.model_copy(update={"target": None}) for head in HEADS]
    settings = DistillationSettings(knowledge=(KnowledgeSettings.model_validate("dkd"),))
    with pytest.raises(ConfigError, match="dkd needs true classes"):
        offline(unlabelled, settings, OPTIM, 1, None)
