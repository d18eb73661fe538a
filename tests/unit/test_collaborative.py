"""Collaborative learning, term by term against NumPy."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from test_schemes import make_world, recipe, terms_of
from test_trainer import HEADS, make_run, make_table
from torch import Tensor, nn

from edgekd.distill.scheme_settings import CollaborativeSettings
from edgekd.distill.schemes.peers import collaborative
from edgekd.distill.schemes.recipe import Recipe
from edgekd.train.trainer import train
from edgekd.train.world import Model, Optim, Phase, World


class Plain(nn.Module):
    """Neither dropout nor BatchNorm: what it gives in training is what NumPy gets."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(25, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x.flatten(1))))


def plain_world(*seeds: int) -> World:
    models = {}
    for name, seed in zip(("student", "peer_1", "peer_2"), seeds, strict=False):
        torch.manual_seed(seed)
        models[name] = Model(Plain(5), ("image",), ("logits",))
    return World(models, {"train": make_table(30)}, HEADS)


STILL = Optim("sgd", lr=1e-30)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def kl(p: np.ndarray, q: np.ndarray, t: float) -> float:
    """KL(softmax(p / t) || softmax(q / t)), mean over rows."""
    log_p, log_q = log_softmax(p / t), log_softmax(q / t)
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


def huber(a: np.ndarray, b: np.ndarray) -> float:
    d = np.abs(a - b)
    return float(np.where(d < 1, 0.5 * d * d, d - 0.5).mean())


def distances(z: np.ndarray) -> np.ndarray:
    d = np.sqrt(((z[:, None] - z[None]) ** 2).sum(2))
    return d / d[d > 0].mean()


def angles(z: np.ndarray) -> np.ndarray:
    e = z[None] - z[:, None]
    n = np.linalg.norm(e, axis=2, keepdims=True)
    e = np.divide(e, n, out=np.zeros_like(e), where=n > 0)
    return np.einsum("ijd,ikd->ijk", e, e)


def weighted_terms(world: World, phases: list[Phase], batch: int = 30) -> dict[str, float]:
    """Weight times value of every term of the last phase, at the weights that the networks have."""
    run = dataclasses.replace(make_run(), batch=batch)
    found = train(world, phases, run)[-1]["terms"]
    return {name: term.weight * found[name][0] for name, term in terms_of(phases[-1]).items()}


def test_every_term_of_collaborative_learning_is_that_of_numpy() -> None:
    settings = CollaborativeSettings(alpha=0.7, beta=0.5, beta1=2.0, beta2=1.5, gamma=0.2, alone_epochs=0)
    world = plain_world(1, 2, 3)
    x, y = world.tables["train"].inputs["image"], world.tables["train"].targets["label"].numpy()
    with torch.no_grad():
        z = {name: model.network(x).double().numpy() for name, model in world.models.items()}
    phases = collaborative(Recipe(HEADS, STILL, 1), ("peer_1", "peer_2"), settings)
    # The own past is that of before: a moved one has something to say.
    moved = copy.deepcopy(world)
    found = weighted_terms(moved, phases)
    assert len(found) == 3 * (1 + 2 * 3 + 1)
    for name, own in z.items():
        assert found[f"{name}.cross_entropy"] == pytest.approx(
            0.7 * -log_softmax(own)[np.arange(30), y].mean(), rel=1e-5
        )
        assert found[f"{name}.past kd"] == pytest.approx(0.0, abs=1e-7)
        for other in z.keys() - {name}:
            share = 0.5 / 2  # the mean over two peers
            expected = {
                "distance": share * huber(distances(own), distances(z[other])),
                "angle": share * 2.0 * huber(angles(own), angles(z[other])),
                "kd": share * 1.5 * kl(z[other], own, 1.0),
            }
            for term, value in expected.items():
                assert found[f"{name}.{term} to {other}"] == pytest.approx(value, rel=1e-4), term


@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_the_own_past_counts_without_t_squared_unless_asked(scale_by_t2: bool) -> None:
    world = plain_world(1, 2)
    settings = CollaborativeSettings(gamma=0.2, temperature=3.0, scale_by_t2=scale_by_t2, alone_epochs=0)
    (together,) = collaborative(Recipe(HEADS, STILL, 1), ("peer_1",), settings)[2:]
    world.models["student_past"], world.models["peer_1_past"] = plain_world(5, 6).models.values()
    x = world.tables["train"].inputs["image"]
    with torch.no_grad():
        own, past = (world.models[name].network(x).double().numpy() for name in ("student", "student_past"))
    found = weighted_terms(world, [dataclasses.replace(together, start=())])
    expected = 0.2 * kl(past, own, 3.0) * (9.0 if scale_by_t2 else 1.0)
    assert found["student.past kd"] == pytest.approx(expected, rel=1e-4)


def test_identical_peers_have_exactly_nothing_to_tell_each_other() -> None:
    found = weighted_terms(
        plain_world(1, 1, 1),
        collaborative(Recipe(HEADS, STILL, 1), ("peer_1", "peer_2"), CollaborativeSettings(alone_epochs=0)),
    )
    peers = {name: value for name, value in found.items() if "cross_entropy" not in name}
    assert len(peers) == 21
    assert set(peers.values()) == {0.0}


@pytest.mark.parametrize("left_out", ["task", "distance", "angle", "peer", "past"])
def test_each_of_the_five_terms_can_be_left_out(left_out: str) -> None:
    names = {"task": "cross_entropy", "distance": "distance", "angle": "angle", "peer": "kd", "past": "past kd"}
    kept = [name for name in names if name != left_out]
    settings = CollaborativeSettings.model_validate_json(json.dumps({"terms": kept}))
    together = collaborative(recipe(), ("peer_1",), settings)[-1]
    assert terms_of(together).keys() == {f"{model}.{names[k]}" for model in ("student", "peer_1") for k in kept}
    assert bool(together.start) == (left_out != "past")


def test_networks_of_one_and_of_different_kinds_and_more_than_two_learn_together() -> None:
    for peers in (("peer_2",), ("peer_1",), ("peer_1", "peer_2")):
        world = make_world()
        curves = train(world, collaborative(recipe(), peers, CollaborativeSettings()), make_run())
        assert [len(curve["epochs"]) for curve in curves] == [2] * (len(peers) + 2)
        assert all(math.isfinite(value) for values in curves[-1]["terms"].values() for value in values)
