"""The scheme and the knowledges of docs/extending.md in the trainer: by hand, frozen guides, resume in the middle."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_schemes import BODY, by_hand, killed, make_world, recipe
from test_trainer import make_run, same, state
from torch import Tensor, nn

from edgekd import extend
from edgekd.config import validate
from edgekd.config.signature import arguments_of, options_of
from edgekd.distill.knowledge import attention, kd
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.schemes.choose import Cast, phases_of
from edgekd.distill.settings import DistillationSettings
from edgekd.errors import ConfigError
from edgekd.models import imports
from edgekd.train.knowledge import knowledge_named, own_options
from edgekd.train.trainer import train
from edgekd.train.world import Phase, World

LAYERWISE = "my_pkg.schemes:layerwise"


@pytest.fixture(autouse=True)
def beside(own_code: Path) -> Path:
    """The user's folder on the import path."""
    imports.put_first(own_code)
    return own_code


def knowledge(*written: Any) -> tuple[KnowledgeSettings, ...]:
    return tuple(KnowledgeSettings.model_validate(item) for item in written)


def phases(*taught: Any, **options: Any) -> list[Phase]:
    settings, problems = validate(DistillationSettings, {"scheme": LAYERWISE, "options": options})
    assert settings is not None, problems
    plan = recipe(2, knowledge=knowledge(*(taught or ("kd",))), pairs=lambda item, student, teacher: BODY)
    return phases_of(plan, settings, Cast(stages=lambda: BODY))


def test_a_scheme_of_ones_own_equals_a_hand_written_loop_bit_for_bit() -> None:
    world, hand = make_world(), make_world()
    train(world, phases(stage_epochs=3, weight=10.0), make_run())
    student = hand.models["student"].network
    teacher = hand.models["teacher"].network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen: dict[str, Tensor] = {}
    for name, network in (("student", student), ("teacher", teacher)):
        network.body.register_forward_hook(lambda module, x, output, name=name: seen.update({name: output}))

    def stage(z: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(x)
        return 10.0 * attention(seen["student"], seen["teacher"])

    def whole(z: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            said = teacher(x)
        return 0.1 * nn.functional.cross_entropy(z[0], y) + 0.9 * kd(z[0], said, temperature=4.0)

    by_hand([student], 0, stage, 3)
    by_hand([student], 1, whole, 2)
    assert same(state(world.models["student"]), student.state_dict())


OWN = ("kd", {"my_pkg.losses:cosine": {"margin": 0.1}}, {"my_pkg.losses:projected_cosine": {"weight": 2, "ramp": 1}})


def test_who_does_not_learn_keeps_every_byte_and_an_adapter_of_ones_own_learns() -> None:
    world, before = make_world(), make_world()
    curves = train(world, phases(*OWN), make_run())
    assert list(curves[1]["terms"]) == ["cross_entropy", "kd", "my_pkg.losses:cosine", "my_pkg.losses:projected_cosine"]
    for name in before.models.keys() - {"student"}:
        assert same(state(before.models[name]), state(world.models[name]))
        assert all(p.grad is None for p in world.models[name].network.parameters())
    (adapter,) = world.models.keys() - before.models.keys()
    untrained = make_world()
    train(untrained, [Phase(p.name, p.moves, 0, p.start, p.data) for p in phases(*OWN)], make_run())
    assert not same(state(world.models[adapter]), state(untrained.models[adapter]))


def test_the_pages_adapter_learns_in_half_precision_on_features_in_float32() -> None:
    world, before = make_world(), make_world()
    curves = train(world, phases(*OWN), make_run(precision="bf16"))
    (name,) = world.models.keys() - before.models.keys()
    assert {p.dtype for p in world.models[name].network.parameters()} == {torch.float32}
    assert all(torch.tensor(values).isfinite().all() for values in curves[1]["terms"].values())


class Fixed(nn.Module):
    """An adapter that learns and remembers nothing: features are brought to one shape by their means."""

    def __init__(self, student: Any, teacher: Any, samples: int) -> None:
        super().__init__()

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.flatten(1).mean(1) - teacher.flatten(1).mean(1)).square().mean()


def test_an_adapter_with_nothing_to_learn_is_run_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    known = knowledge_named("my_pkg.losses:projected_cosine")

    def found(name: str) -> Any:
        return dataclasses.replace(known, adapter=Fixed) if name == known.name else knowledge_named(name)

    monkeypatch.setattr("edgekd.train.objective.knowledge_named", found)
    monkeypatch.setattr("edgekd.train.adapters.knowledge_named", found)
    world, before = make_world(), make_world()
    curves = train(world, phases({"my_pkg.losses:projected_cosine": {"weight": 2}}), make_run())
    assert curves[1]["terms"]["my_pkg.losses:projected_cosine"][-1] > 0
    assert not same(state(world.models["student"]), state(before.models["student"]))


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = make_world()
    curves = train(whole, phases(*OWN), make_run())
    for stop_after in (1, 2, 3):
        folder = tmp_path / str(stop_after)
        killed(stop_after, make_world, phases(*OWN), folder)
        resumed: World = make_world()
        assert train(resumed, phases(*OWN), make_run(folder)) == curves
        assert resumed.models.keys() == whole.models.keys()
        assert all(same(state(model), state(resumed.models[name])) for name, model in whole.models.items())


def test_facts_of_a_knowledge_are_read_from_its_decorator_and_settings_go_to_the_function() -> None:
    plain, projected = knowledge(*OWN[1:])
    assert (plain.name, plain.weight, plain.features, plain.arguments) == (
        "my_pkg.losses:cosine",
        1.0,
        False,
        {"margin": 0.1},
    )
    assert (projected.weight, projected.ramp, projected.features, projected.layers) == (2.0, 1.0, True, None)
    assert knowledge_named(projected.name).adapter is not None
    assert own_options(projected.name).model_fields.keys() == {"margin"}
    (layered,) = knowledge({"my_pkg.losses:cosine": {"layers": ["a", "b"]}})
    assert (layered.features, layered.layers) == (True, (("a", "b"),))
    assert KnowledgeSettings.model_validate(layered.canonical()) == layered


def test_options_are_typed_by_annotations_and_by_defaults() -> None:
    def function(a: int, b: int, *, n: int, pair: tuple[int, int] = (1, 2), rate=0.1, name: str | None = None):  # type: ignore[no-untyped-def]
        pass

    kind = options_of(function, "f", given=2)
    settings, problems = validate(kind, {"n": 1, "pair": [3, 4], "rate": 1, "name": None})
    assert settings is not None, problems
    assert arguments_of(settings) == {"n": 1, "pair": (3, 4), "rate": 1, "name": None}
    for wrong in ({}, {"n": "1"}, {"n": 1, "pair": [1]}, {"n": 1, "rate": "fast"}, {"n": 1, "m": 2}):
        assert validate(kind, wrong)[0] is None
    open_kind = options_of(lambda a, b, **options: None, "f", given=2)
    settings, _ = validate(open_kind, {"anything": [1]})
    assert settings is not None and arguments_of(settings) == {"anything": [1]}

    def odd(a: int, b: int, *, net: nn.Module) -> None: ...

    with pytest.raises(ConfigError, match="the options of f cannot be read"):
        options_of(odd, "f", given=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('no')", r"scheme broken:f failed: broken.py:2: KeyError: 'no'"),
        ("return None", "gave no list of phases"),
        ("return [recipe.alone('teacher', 'teacher')]", "teaches nobody named `student`"),
        ("return recipe.nothing", "broken.py:2: AttributeError"),
    ],
)
def test_a_scheme_that_makes_no_phases_is_an_error_of_one_line(body: str, message: str, beside: Path) -> None:
    (beside / "broken.py").write_text(f"def f(recipe, cast):\n    {body}\n")
    sys.modules.pop("broken", None)
    importlib.invalidate_caches()
    settings, _ = validate(DistillationSettings, {"scheme": "broken:f"})
    assert settings is not None
    with pytest.raises(ConfigError, match=message):
        phases_of(recipe(), settings, Cast())


def test_what_own_code_is_made_of_comes_from_one_place() -> None:
    """Names that a user's code imports: a change here breaks it."""
    models = {"Average", "Best", "Copy", "Follow", "Fresh", "Model", "World"}
    tables = {"Bootstrap", "Noise", "Relabel", "Split", "Subset"}
    phases = {"Cast", "Move", "Optim", "Phase", "Recipe", "Term", "Watch"}
    assert set(extend.__all__) == models | tables | phases | {"ConfigError", "knowledge", "register", "scheme"}
    assert all(hasattr(extend, name) for name in extend.__all__)
