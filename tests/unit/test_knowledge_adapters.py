"""Adapters: what a knowledge learns or remembers is saved, and stands still outside training; and the options."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.config import validate
from edgekd.distill import knowledge
from edgekd.distill.knowledge.adapters import Connector
from edgekd.distill.knowledge.information_adapters import CrdAdapter, VidAdapter
from edgekd.distill.knowledge.intermediate import review
from edgekd.distill.knowledge.intermediate_adapters import (
    BoundaryAdapter,
    FactorAdapter,
    HintAdapter,
    ReviewAdapter,
)
from edgekd.distill.knowledge.relation_adapters import CorrelationAdapter
from edgekd.distill.knowledge_settings import KNOWLEDGES
from edgekd.distill.settings import DistillationSettings, KnowledgeSettings
from edgekd.errors import ConfigError
from edgekd.train.knowledge import knowledge_named

STUDENT, TEACHER, SAMPLES = (6, 8, 8), (10, 4, 4), 40
ADAPTED = [name for name in knowledge.__all__ if knowledge_named(name).adapter]
NAMES = list(KNOWLEDGES)
INDEX, TARGET = torch.arange(5), torch.tensor([0, 1, 2, 0, 1])


def _adapter(name: str, **settings: Any) -> nn.Module:
    entry = knowledge_named(name)
    assert entry.adapter is not None
    torch.manual_seed(0)
    several = entry.levels == "several"
    shapes = ([STUDENT, (12, 4, 4)], [TEACHER, (16, 2, 2)]) if several else (STUDENT, TEACHER)
    given = {"paraphraser_steps": 0, **settings} if name == "factor" else settings
    return entry.adapter(*shapes, samples=SAMPLES, **given)


def _sides(name: str, seed: int = 0, *, grad: bool = False) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [STUDENT, TEACHER, (12, 4, 4), (16, 2, 2)]
    made = [torch.randn((5, *shape), generator=generator).requires_grad_(grad) for shape in shapes]
    return (made[::2], made[1::2]) if knowledge_named(name).levels == "several" else (made[0], made[1])


def _listed(side: Any) -> list[Tensor]:
    return [side] if isinstance(side, Tensor) else list(side)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ADAPTED)
def test_gradients_reach_the_adapter_and_the_student_and_not_the_teacher(name: str) -> None:
    adapter = _adapter(name)
    student, teacher = _sides(name, grad=True)
    loss = adapter(student, teacher, index=INDEX, target=TARGET)
    assert loss.shape == () and torch.isfinite(loss)
    loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in _listed(student))
    assert all(x.grad is None for x in _listed(teacher))
    # The paraphraser is frozen by now; projections that are random on purpose never learn.
    learns = {n: p for n, p in adapter.named_parameters() if p.requires_grad}
    idle = {n for n, p in learns.items() if p.grad is None}
    assert {n.split(".")[0] for n in idle} <= ({"paraphraser", "decoder"} if name == "factor" else set())
    assert len(learns) > len(idle)


@pytest.mark.parametrize("name", ADAPTED)
def test_saved_and_loaded_it_goes_on_where_it_was(name: str) -> None:
    first, second = _adapter(name), _adapter(name)
    optimizer = torch.optim.SGD([p for p in first.parameters() if p.requires_grad], lr=0.01)
    for seed in range(3):
        optimizer.zero_grad()
        first(*_sides(name, seed), index=INDEX, target=TARGET).backward()
        optimizer.step()
    assert not _same(_state(first), _state(second))
    second.load_state_dict(first.state_dict())
    values = []
    for adapter in (first, second):
        torch.manual_seed(1)
        values.append(adapter(*_sides(name, 9), index=INDEX, target=TARGET).item())
    assert values[0] == values[1]
    assert _same(_state(first), _state(second))


@pytest.mark.parametrize("name", ADAPTED)
def test_in_eval_mode_nothing_changes(name: str) -> None:
    adapter = _adapter(name).eval()
    before = _state(adapter)
    adapter(*_sides(name), index=INDEX, target=TARGET)
    assert _same(_state(adapter), before)


@pytest.mark.parametrize("name", [name for name in ADAPTED if name in {"hint", "vid", "crd", "correlation", "graph"}])
def test_embeddings_are_adapted_like_maps(name: str) -> None:
    entry = knowledge_named(name)
    assert entry.adapter is not None
    adapter = entry.adapter((6,), (10,), samples=SAMPLES)
    student = torch.randn(5, 6, requires_grad=True)
    adapter.eval()(student, torch.randn(5, 10), index=INDEX).backward()
    assert student.grad is not None


def test_hint_regresses_by_convolution_normalisation_and_relu() -> None:
    adapter = HintAdapter(STUDENT, TEACHER)
    student, teacher = _sides("hint")
    kinds = [type(layer) for layer in adapter.regressor]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    expected = F.mse_loss(F.avg_pool2d(adapter.regressor(student), 2), teacher)
    assert torch.allclose(adapter(student, teacher), expected)


def test_paraphraser_learns_first_and_then_stands_still() -> None:
    adapter = FactorAdapter(STUDENT, TEACHER, paraphraser_steps=30)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.01)
    losses = []
    for step in range(30):
        student, teacher = _sides("factor", step % 2, grad=True)
        optimizer.zero_grad()
        loss = adapter(student, teacher)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert student.grad is None and teacher.grad is None
    assert losses[-1] < 0.7 * losses[0]
    student, teacher = _sides("factor", grad=True)
    before = {n: v for n, v in _state(adapter).items() if not n.startswith("translator")}
    optimizer.zero_grad()
    adapter(student, teacher).backward()
    optimizer.step()
    after = {n: v for n, v in _state(adapter).items() if not n.startswith("translator")}
    assert student.grad is not None
    assert _same(before, after)


def test_paraphraser_goes_on_learning_from_the_step_that_was_saved() -> None:
    first, second = (FactorAdapter(STUDENT, TEACHER, paraphraser_steps=3) for _ in range(2))
    for _ in range(2):
        first(*_sides("factor"))
    second(*_sides("factor"))
    second.load_state_dict(first.state_dict())
    assert second(*_sides("factor")).grad_fn is not None
    student, teacher = _sides("factor", grad=True)
    second(student, teacher).backward()
    assert int(second.steps) == 3
    assert student.grad is not None


def test_boundary_connects_each_stage_to_the_teachers_channels() -> None:
    adapter = BoundaryAdapter([STUDENT, (12, 4, 4)], [TEACHER, (16, 2, 2)], margin=0.5)
    student, teacher = _sides("boundary")
    connected = [connect(x) for connect, x in zip(adapter.connectors, student, strict=True)]
    assert [x.shape[1] for x in connected] == [10, 16]
    assert torch.allclose(adapter(student, teacher), knowledge.boundary(connected, teacher, margin=0.5))


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([(6, 8, 8), (12, 4, 4), (24, 2, 2), (24,)], [(10, 8, 8), (20, 4, 4), (40, 2, 2), (40,)]),
        ([(6, 16, 16), (12, 7, 7)], [(10, 8, 8), (20, 4, 4)]),
        ([(6, 4, 4), (12, 2, 2)], [(10, 8, 8), (20, 8, 8)]),
        ([(6, 4, 6)], [(10, 8, 3)]),
    ],
)
def test_review_fuses_stages_of_any_size_into_the_teachers_shapes(student: Any, teacher: Any) -> None:
    adapter = ReviewAdapter(student, teacher)
    s, t = [torch.randn(3, *x, requires_grad=True) for x in student], [torch.randn(3, *x) for x in teacher]
    fused = adapter.fused(s, [(*x[1:], 1, 1)[:2] for x in teacher])
    assert [tuple(x.shape[1:]) for x in fused] == [(x[0], *(x[1:] or (1, 1))) for x in teacher]
    loss = adapter(s, t)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(x.grad is not None for x in s)
    assert adapter.reduce[-1][0].out_channels == student[-1][0]
    known = [x[:, :, None, None] if x.dim() == 2 else x for x in t]
    assert torch.allclose(adapter.eval()(s, t), review(adapter.fused(s, [x.shape[2:] for x in known]), known))


def test_a_shallow_stage_of_review_hears_the_deeper_ones_and_not_the_other_way_round() -> None:
    adapter = ReviewAdapter([STUDENT, (12, 4, 4)], [TEACHER, (16, 2, 2)]).eval()
    student, _ = _sides("review", grad=True)
    shallow, deep = adapter.fused(student, [(4, 4), (2, 2)])
    assert torch.autograd.grad(shallow.sum(), student[1], retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(deep.sum(), student[0], allow_unused=True)[0] is None


def test_the_teachers_embedding_of_correlation_is_fixed_so_that_both_cannot_collapse() -> None:
    adapter = CorrelationAdapter(STUDENT, TEACHER, dim=32)
    assert {n for n, p in adapter.named_parameters() if p.requires_grad} == {"student.weight", "student.bias"}
    assert adapter.student.out_features == adapter.teacher.out_features == 32
    assert "teacher.weight" in adapter.state_dict()


def test_vid_starts_with_variance_5_and_learns_it() -> None:
    adapter = VidAdapter(STUDENT, TEACHER)
    assert adapter.variance.tolist() == pytest.approx([5.0] * 10)
    assert "raw_variance" in adapter.state_dict()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        adapter(*_sides("vid")).backward()
        optimizer.step()
    assert (adapter.variance < 3.0).all() and (adapter.variance > 0.0).all()


def _crd(**settings: Any) -> CrdAdapter:
    torch.manual_seed(0)
    return CrdAdapter((6,), (10,), samples=SAMPLES, **{"dim": 8, **settings})


def _rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 6, generator=generator), torch.randn(5, 10, generator=generator)


def test_crd_moves_the_entries_of_a_batch_and_no_others() -> None:
    adapter, (student, teacher) = _crd(momentum=0.25), _rows()
    before = adapter.banks.clone()
    adapter(student, teacher, index=INDEX + 7)
    seen = F.normalize(adapter.student(student), dim=1)
    moved = F.normalize(0.25 * before[0, 7:12] + 0.75 * seen, dim=1)
    assert torch.allclose(adapter.banks[0, 7:12], moved, atol=1e-6)
    others = [*range(7), *range(12, SAMPLES)]
    assert torch.equal(adapter.banks[:, others], before[:, others])
    assert not torch.isclose(adapter.banks[1, 7:12], before[1, 7:12]).all()
    assert torch.allclose(adapter.banks.norm(dim=2), torch.ones(2, SAMPLES))


def test_crd_estimates_z_on_the_first_batch_and_keeps_it() -> None:
    adapter = _crd()
    adapter.eval()(*_rows(), index=INDEX)
    assert adapter.log_z.isinf().all()
    adapter.train()(*_rows(), index=INDEX)
    first = adapter.log_z.clone()
    adapter(*_rows(1), index=INDEX + 5)
    assert first.isfinite().all() and torch.equal(adapter.log_z, first)


def test_crd_contrasts_with_other_samples_and_with_other_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = _crd(negatives=9)
    seen: list[Tensor] = []

    def spy(*args: Any, **given: Any) -> Tensor:
        seen.append(given["allowed"])
        return knowledge.crd(*args, **given)

    monkeypatch.setattr("edgekd.distill.knowledge.information_adapters.crd", spy)
    monkeypatch.setattr(torch, "randint", lambda high, size, device: torch.arange(9))
    for _ in range(2):
        adapter(*_rows(), index=INDEX, target=TARGET)
    assert (seen[0] == (torch.arange(9) != INDEX[:, None])).all()  # no class was seen before
    classes = torch.cat((TARGET, torch.full((4,), -1)))
    assert (seen[-1] == (classes != TARGET[:, None])).all()
    assert adapter.negatives == 9 and _crd().negatives == SAMPLES


def test_crd_contrasts_each_side_with_the_bank_of_the_other() -> None:
    adapter, (student, teacher) = _crd().eval(), _rows()
    sides = adapter.student(student), adapter.teacher(teacher)
    drawn = torch.arange(SAMPLES)
    given = {"allowed": drawn != INDEX[:, None], "samples": SAMPLES}
    banks = adapter.banks.flip(0)
    losses = [knowledge.crd(x, b[INDEX], negatives=b, **given) for x, b in zip(sides, banks, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randint", lambda high, size, device: drawn)
        assert torch.allclose(adapter(student, teacher, index=INDEX), losses[0] + losses[1])


def test_crd_learns_to_tell_samples_apart() -> None:
    adapter, (student, teacher) = _crd(), _rows()
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = adapter(student, teacher, index=INDEX)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_crd_draws_from_the_global_generator() -> None:
    values = []
    for _ in range(2):
        adapter = _crd(negatives=4)
        torch.manual_seed(3)
        values.append(adapter(*_rows(), index=INDEX).item())
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HintAdapter((6, 8), (10, 8)), "hint adapts embeddings"),
        (lambda: ReviewAdapter([(6,)], [(6,), (7,)]), "review pairs 1 stages of the student with 2"),
        (lambda: ReviewAdapter([(6,)], [(6,)])([torch.zeros(2, 6)] * 2, [torch.zeros(2, 6)] * 2), "made for 1 stages"),
        (lambda: CrdAdapter((6,), (10,), samples=1), "more than one"),
        (lambda: _crd()(*_rows()), "needs sample ids"),
        (lambda: FactorAdapter((6,), (10, 4, 4)), "factor compares positions"),
        (lambda: FactorAdapter((6, 4, 4), (10, 1, 1)), "factor compares positions"),
        (lambda: Connector(3, 4)(torch.zeros(1, 3, 1, 1)), "not defined for one sample"),
    ],
)
def test_what_cannot_be_adapted_is_refused_with_a_way_out(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_options_are_arguments_with_the_same_defaults_and_agree_with_the_table(name: str) -> None:
    item = KnowledgeSettings.model_validate({name: {}})
    entry = knowledge_named(name)
    parameters = inspect.signature(entry.adapter or entry.function).parameters
    assert {key: parameters[key].default for key in item.arguments} == item.arguments
    assert set(parameters) - set(item.arguments) <= {"student", "teacher", "samples", "target"}
    assert item.features == entry.features
    assert item.of_classes == (entry.family == "response" and name != "mse_logits")


def test_every_row_of_the_table_has_options_and_weights_of_practice() -> None:
    weights = {name: KnowledgeSettings.model_validate(name).weight for name in NAMES}
    taught = {name for name in knowledge.__all__ if knowledge_named(name).family not in ("generation", "several")}
    assert taught == set(NAMES)
    assert weights == {
        **dict.fromkeys(NAMES, 1.0), "kd": 0.9, "mse_logits": 0.9, "reverse_kl": 0.9, "jensen_shannon": 0.9,
        "logit_std": 9.0, "hint": 100.0, "attention": 1000.0, "nst": 50.0, "factor": 200.0, "similarity": 3000.0,
        "correlation": 0.02, "pkt": 30000.0, "crd": 0.8,
    }  # fmt: skip
    ramps = {name: KnowledgeSettings.model_validate(name).ramp for name in NAMES}
    assert {name: ramp for name, ramp in ramps.items() if ramp} == {"dkd": 20.0, "review": 20.0}


@pytest.mark.parametrize(
    ("written", "layers"),
    [("auto", None), (["a", "b"], (("a", "b"),)), ([["a", "b"], ["c", "d"]], (("a", "b"), ("c", "d")))],
)
def test_layers_are_one_pair_several_or_found(written: Any, layers: Any) -> None:
    made, problems = validate(DistillationSettings, {"knowledge": [{"attention": {"layers": written, "ramp": 2}}]})
    assert problems == [] and made is not None and made.knowledge is not None
    item = made.knowledge[0]
    assert (item.name, item.layers, item.ramp, item.weight) == ("attention", layers, 2.0, 1000.0)
    assert item.arguments == {"power": 2.0}
    assert list(item.canonical()) == ["attention"]


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ({"atention": {}}, "unknown knowledge 'atention'", "did you mean 'attention'?"),
        ("atention", "unknown knowledge 'atention'", "did you mean 'attention'?"),
        ({"dkd": {"bta": 2}}, "unknown key 'bta' in knowledge.0.dkd", "did you mean 'beta'?"),
        ({"kd": {}, "dkd": {}}, "one knowledge per item", "write e.g. - {kd: {temperature: 4}}"),
        ({"hint": {"layers": ["a"]}}, "no pairs of modules", "layers: [student_layer, teacher_layer]"),
        ({"hint": {"layers": []}}, "no pairs of modules", "layers: [student_layer, teacher_layer]"),
        ({"hint": {"layers": [["a", "b"], "c"]}}, "no pairs of modules", "layers: [student_layer, teacher_layer]"),
        ({"fsp": {"layers": ["a", "b"]}}, "neighbouring stages", "layers: [[s1, t1], [s2, t2]]"),
        ({"kd": {"layers": ["a", "b"]}}, "unknown key 'layers'", "temperature"),
        ({"crd": {"momentum": 1}}, "momentum: 1 is not allowed", "less than 1"),
    ],
)
def test_mistakes_in_knowledge_name_the_place_and_the_way_out(written: Any, message: str, hint: str) -> None:
    _, problems = validate(DistillationSettings, {"knowledge": [written]})
    assert len(problems) == 1
    assert message in problems[0].message
    assert hint in problems[0].hint


def test_a_name_alone_takes_all_defaults() -> None:
    made = [KnowledgeSettings.model_validate_json(text) for text in ('"rkd"', '{"rkd": null}', '{"rkd": {}}')]
    assert made[0] == made[1] == made[2]
    assert made[0].arguments == {"distance_weight": 25.0, "angle_weight": 50.0}
