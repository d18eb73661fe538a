"""What knowledges claim: where they are smallest, what they do not see, that they stay finite, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from edgekd.distill import knowledge as k
from edgekd.distill.knowledge.shapes import at_size
from edgekd.errors import ConfigError
from edgekd.train.knowledge import knowledge_named, knowledges

SEEDS = st.integers(0, 10**6)
ROWS = st.integers(3, 6)
ONE = [name for name in k.__all__ if knowledge_named(name).family in {"intermediate", "relation", "information"}]
SEVERAL = [name for name in ONE if knowledge_named(name).levels == "several"]
MAPS = [name for name in ONE if name not in SEVERAL]
LOGITS = [name for name in k.__all__ if knowledge_named(name).family == "response"]
COUPLED = ["similarity", "rkd", "correlation", "pkt", "graph"]
# Smallest, but not 0, at equality; see the tests of their own.
STATED = {"vid", "crd", "boundary"}
few = settings(max_examples=20, deadline=None)


def _draw(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def _maps(seed: int, rows: int = 4, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return _draw(seed, (rows, 3, 4, 4), (rows, 3, 4, 4), dtype=dtype)


def _call(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    """A knowledge of one pair of tensors; lists get the pair twice, once pooled."""
    function = getattr(k, name)
    if name in SEVERAL:
        sides = [[x, F.avg_pool2d(x, 2) if x.dim() == 4 else x] for x in (student, teacher)]
        return function(*sides)
    if name == "dkd":
        return function(student, teacher, target=torch.arange(len(student)) % student.shape[1])
    return function(student, teacher)


@pytest.mark.parametrize("name", LOGITS)
@given(ROWS, st.integers(2, 6), SEEDS)
@few
def test_response_is_zero_at_the_teachers_and_nowhere_less(name: str, rows: int, classes: int, seed: int) -> None:
    student, teacher = _draw(seed, (rows, classes), (rows, classes))
    assert _call(name, teacher, teacher).item() == pytest.approx(0.0, abs=1e-9)
    assert _call(name, student, teacher).item() >= -1e-9


@pytest.mark.parametrize("name", [name for name in ONE if name not in STATED])
@given(ROWS, SEEDS)
@few
def test_features_cost_nothing_where_they_are_the_teachers(name: str, rows: int, seed: int) -> None:
    student, teacher = _maps(seed, rows)
    assert _call(name, teacher, teacher).item() == pytest.approx(0.0, abs=1e-9)
    assert _call(name, student, teacher).item() >= -1e-12


@given(SEEDS, st.floats(0.1, 9))
@few
def test_vid_is_smallest_at_the_teacher_where_it_is_half_the_log_variance(seed: int, variance: float) -> None:
    student, teacher = _maps(seed)
    least = 0.5 * math.log(variance)
    assert k.vid(teacher, teacher, variance=variance).item() == pytest.approx(least)
    assert k.vid(student, teacher, variance=variance).item() >= least
    assert k.vid(student, teacher, variance=torch.full((3,), variance)).item() == pytest.approx(
        k.vid(student, teacher, variance=variance).item()
    )


@given(SEEDS)
@few
def test_boundary_costs_nothing_beyond_the_margin_on_the_teachers_side(seed: int) -> None:
    student, teacher = _maps(seed)
    beyond = teacher + teacher.sign()
    assert k.boundary([beyond], [teacher]).item() == pytest.approx(0.0, abs=1e-12)
    assert k.boundary([student], [teacher]).item() > 0.0


@given(st.integers(4, 8), SEEDS)
@few
def test_crd_is_smaller_for_the_teachers_own_rows_than_for_another_order_of_them(rows: int, seed: int) -> None:
    teacher, _ = _draw(seed, (rows, 16), (rows, 16))
    assert k.crd(teacher, teacher).item() < k.crd(teacher.roll(1, 0), teacher).item()


def test_crd_is_the_loss_that_the_paper_writes() -> None:
    student, teacher, bank = _draw(0, (3, 5), (3, 5), (4, 5))
    unit = [F.normalize(x, dim=1) for x in (student, teacher, bank)]
    pair, rest = ((unit[0] * unit[1]).sum(1) / 0.5).exp(), (unit[0] @ unit[2].t() / 0.5).exp()
    z, noise = torch.cat((pair, rest.flatten())).mean() * 100, 4 / 100
    expected = -(pair / z / (pair / z + noise)).log().sum() - (noise / (rest / z + noise)).log().sum()
    found = k.crd(student, teacher, negatives=bank, samples=100, temperature=0.5)
    assert found.item() == pytest.approx(expected.item() / 3)
    allowed = torch.tensor([[True, False, True, True]] * 3)
    assert k.crd(student, teacher, negatives=bank, allowed=allowed, samples=100).item() == pytest.approx(
        k.crd(student, teacher, negatives=bank[[0, 2, 3]], samples=100).item()
    )


@given(SEEDS)
@few
def test_attention_does_not_see_the_order_or_the_number_of_channels(seed: int) -> None:
    student, teacher = _maps(seed)
    before = k.attention(student, teacher).item()
    assert k.attention(student[:, [2, 0, 1]], teacher).item() == pytest.approx(before)
    assert k.attention(torch.cat((student, student), 1), teacher).item() == pytest.approx(before)
    assert k.attention(3.0 * student, teacher).item() == pytest.approx(before)


@given(SEEDS, st.floats(0.01, 100))
@few
def test_rkd_does_not_see_size_place_or_direction(seed: int, scale: float) -> None:
    student, teacher, basis, shift = _draw(seed, (5, 6), (5, 9), (6, 6), (6,))
    rotation = torch.linalg.qr(basis).Q
    before = k.rkd(student, teacher).item()
    assert k.rkd(scale * student, teacher).item() == pytest.approx(before, rel=1e-6)
    assert k.rkd(student @ rotation + shift, teacher).item() == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("name", ["similarity", "rkd", "pkt", "graph"])
@given(ROWS, SEEDS)
@few
def test_relations_do_not_see_the_order_of_the_samples(name: str, rows: int, seed: int) -> None:
    student, teacher = _draw(seed, (rows, 6), (rows, 6))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert _call(name, student[order], teacher[order]).item() == pytest.approx(_call(name, student, teacher).item())


@given(SEEDS)
@few
def test_similarity_does_not_see_rotations_and_pkt_no_scale(seed: int) -> None:
    student, teacher, basis = _draw(seed, (5, 6), (5, 9), (6, 6))
    rotated = student @ torch.linalg.qr(basis).Q
    assert k.similarity(rotated, teacher).item() == pytest.approx(k.similarity(student, teacher).item())
    assert k.pkt(7.0 * student, teacher).item() == pytest.approx(k.pkt(student, teacher).item(), rel=1e-4)


@given(st.integers(2, 6), st.floats(0.5, 8), SEEDS)
@few
def test_kd_is_the_decoupled_losses_with_the_teachers_doubt_as_weight(
    classes: int, temperature: float, seed: int
) -> None:
    student, teacher = _draw(seed, (1, classes), (1, classes))
    doubt = 1.0 - F.softmax(teacher / temperature, dim=1)[0, 0].item()
    decoupled = k.dkd(student, teacher, target=torch.tensor([0]), alpha=1.0, beta=doubt, temperature=temperature)
    assert decoupled.item() == pytest.approx(k.kd(student, teacher, temperature=temperature).item(), abs=1e-12)


@given(SEEDS)
@few
def test_divergences_stand_to_each_other_as_they_are_named(seed: int) -> None:
    student, teacher = _draw(seed, (4, 5), (4, 5))
    assert k.reverse_kl(student, teacher).item() == pytest.approx(k.kd(teacher, student).item())
    between = k.jensen_shannon(student, teacher, temperature=1.0).item()
    assert between == pytest.approx(k.jensen_shannon(teacher, student, temperature=1.0).item())
    assert between <= math.log(2.0)
    assert k.logit_std(3.0 * student + 1.0, teacher).item() == pytest.approx(
        k.logit_std(student, teacher).item(), rel=1e-5
    )
    assert k.dist(student, teacher, gamma=0.0, temperature=1.0).item() <= 4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(
    ("name", "rows"),
    [(name, rows) for name in LOGITS for rows in (1, 2, 5) if name != "mse_logits" and (name, rows) != ("dist", 1)],
)
def test_logits_at_scale_200_leave_value_and_gradient_finite(
    name: str, rows: int, classes: int, dtype: torch.dtype
) -> None:
    for seed in range(5):
        student, teacher = (200 * x for x in _draw(seed, (rows, classes), (rows, classes), dtype=dtype))
        for other in (teacher, -student, torch.zeros_like(teacher)):
            leaf = student.clone().requires_grad_()
            loss = _call(name, leaf, other)
            loss.backward()
            assert leaf.grad is not None
            assert torch.isfinite(loss)
            assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ONE)
@pytest.mark.parametrize("kind", ["large", "zero", "equal rows"])
def test_features_of_any_size_leave_value_and_gradient_finite(name: str, kind: str, dtype: torch.dtype) -> None:
    student, teacher = _maps(1, dtype=dtype)
    made = {"large": 200 * student, "zero": 0 * student, "equal rows": student[:1].expand_as(student)}[kind]
    leaf = made.clone().requires_grad_()
    loss = _call(name, leaf, 200 * teacher)
    loss.backward()
    assert leaf.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", [name for name in ONE if name not in {*COUPLED, "crd"}])
def test_one_sample_is_enough_where_samples_do_not_meet(name: str) -> None:
    student, teacher = _maps(2, rows=1)
    assert torch.isfinite(_call(name, student, teacher))


@pytest.mark.parametrize("name", [*COUPLED, "dist", "crd"])
def test_one_sample_has_no_relations(name: str) -> None:
    student, teacher = _draw(3, (1, 6), (1, 6))
    with pytest.raises(ConfigError, match=f"^{name}.* not defined for 1") as caught:
        _call(name, student, teacher)
    assert "train.batch" in (caught.value.hint or "")


def test_two_samples_have_distances_and_no_angles() -> None:
    student, teacher = _draw(4, (2, 6), (2, 6))
    assert k.rkd(student, teacher, distance_weight=0.0).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: k.dkd(torch.zeros(2, 1), torch.zeros(2, 1), target=torch.zeros(2).long()), "at least 2 classes"),
        (lambda: k.dist(torch.zeros(2, 3), torch.zeros(2, 4)), "logits \\(N, C\\) of one shape"),
        (lambda: k.reverse_kl(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), "logits \\(N, C\\) of one shape"),
        (lambda: k.hint(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)), "as many channels"),
        (lambda: k.vid(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4)), "as many channels"),
        (lambda: k.fsp([torch.zeros(2, 3, 4, 4)] * 2, [torch.zeros(2, 5, 4, 4)] * 2), "as many channels"),
        (lambda: k.correlation(torch.zeros(2, 3), torch.zeros(2, 5)), "as many channels"),
        (lambda: k.graph(torch.zeros(2, 3), torch.zeros(2, 5)), "as many channels"),
        (lambda: k.crd(torch.zeros(2, 3), torch.zeros(2, 5)), "as many channels"),
        (lambda: k.attention(torch.zeros(2, 3), torch.zeros(2, 3)), "compares maps"),
        (lambda: k.similarity(torch.zeros(2, 3), torch.zeros(4, 3)), "rows of one batch"),
        (lambda: k.fsp([torch.zeros(2, 3, 4, 4)], [torch.zeros(2, 3, 4, 4)]), "at least 2 stages"),
        (lambda: k.review([torch.zeros(2, 3)], []), "as many stages"),
        (lambda: k.boundary(torch.zeros(2, 3), torch.zeros(2, 3)), "two lists"),
        (lambda: k.bn_statistics(torch.zeros(2, 3), mean=torch.zeros(4), variance=torch.ones(4)), "4 channels"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_way_out(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert caught.value.hint


@pytest.mark.parametrize("name", [*LOGITS, *ONE])
def test_no_teacher_gets_a_gradient(name: str) -> None:
    shapes = [(4, 6), (4, 6)] if name in LOGITS else [(4, 3, 4, 4), (4, 3, 4, 4)]
    student, teacher = (x.requires_grad_() for x in _draw(5, *shapes))
    _call(name, student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None


@given(st.integers(1, 9), st.integers(1, 9), SEEDS)
@few
def test_maps_are_pooled_as_torch_pools_them(height: int, width: int, seed: int) -> None:
    (x,) = _draw(seed, (2, 3, 9, 9))
    assert torch.allclose(at_size(x, (height, width)), F.adaptive_avg_pool2d(x, (height, width)), atol=1e-12)


@pytest.mark.parametrize("name", ["hint", "attention", "nst", "factor", "vid"])
def test_the_larger_map_is_pooled_whichever_side_it_is_on(name: str) -> None:
    large, small = _draw(6, (2, 3, 8, 8), (2, 3, 4, 4))
    pooled = F.avg_pool2d(large, 2)
    assert _call(name, large, small).item() == pytest.approx(_call(name, pooled, small).item())
    assert _call(name, small, large).item() == pytest.approx(_call(name, small, pooled).item())


class _Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that is made inside."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            # An expanded view takes no memory of its own.
            self.numbers = max(self.numbers, x.untyped_storage().nbytes() // 4 if isinstance(x, Tensor) else 0)
        return made


def _largest(function: Callable[..., Tensor], *sides: Tensor) -> int:
    student, teacher = sides[0].requires_grad_(), sides[1]
    with _Largest() as seen:
        function(student, teacher).backward()
    return seen.numbers


def test_relations_between_channels_and_samples_come_from_matrix_products_not_from_broadcasts() -> None:
    channels = _draw(7, (2, 32, 8, 8), (2, 32, 8, 8), dtype=torch.float32)
    assert _largest(k.nst, *channels) == 2 * 32 * 64  # a broadcast would hold 32 times as many
    wide = _draw(8, (8, 4096), (8, 4096), dtype=torch.float32)
    assert max(_largest(f, *wide) for f in (k.rkd, k.similarity, k.pkt, k.graph)) <= 2 * 8 * 4096
    kernel = [F.normalize(x.detach().flatten(2), dim=2) for x in channels]
    squares = [(a[:, :, None] * b[:, None]).sum(3).square().mean() for a in kernel for b in kernel]
    assert k.nst(*channels).item() == pytest.approx((squares[0] + squares[3] - 2 * squares[1]).item(), rel=1e-4)


def test_angles_of_near_samples_survive_float32() -> None:
    student, teacher = _draw(9, (6, 32), (6, 32))
    student[3:] = student[:3] + 1e-4 * student[3:]
    exact = k.rkd(student + 10.0, teacher, distance_weight=0.0).item()
    assert k.rkd((student + 10.0).float(), teacher.float(), distance_weight=0.0).item() == pytest.approx(
        exact, rel=0.01
    )


@pytest.mark.parametrize("width", [4, 500])
def test_equal_samples_have_no_angle_between_them_and_no_endless_gradient(width: int) -> None:
    student, teacher = _draw(12, (37, width), (37, width), dtype=torch.float32)
    student[5:20] = student[4]
    leaves = [student.double().requires_grad_(), student.clone().requires_grad_()]
    exact, found = (k.rkd(leaf, teacher.to(leaf.dtype)) for leaf in leaves)
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)
    exact.backward()
    found.backward()
    assert leaves[0].grad is not None and leaves[1].grad is not None
    assert leaves[1].grad.norm().item() == pytest.approx(leaves[0].grad.norm().item(), rel=1e-3)
    rounded = (student * (1 + 1e-7 * _draw(13, (37, width), dtype=torch.float32)[0])).requires_grad_()
    k.rkd(rounded, teacher).backward()
    assert rounded.grad is not None
    assert rounded.grad.norm() < 20 * leaves[0].grad.norm()


def test_losses_of_generators_and_critics_are_what_they_are_named_after() -> None:
    logits, other = _draw(10, (6, 4), (6, 4))
    assert k.one_hot(logits).item() == pytest.approx(F.cross_entropy(logits, logits.argmax(1)).item())
    assert k.activation(logits).item() == pytest.approx(-logits.abs().mean().item())
    assert k.entropy(torch.eye(4) * 1e3).item() == pytest.approx(-math.log(4))
    assert k.entropy(torch.eye(4)[:1].expand(6, 4) * 1e3).item() == pytest.approx(0.0, abs=1e-6)
    assert k.entropy(logits).item() == pytest.approx(
        -torch.distributions.Categorical(F.softmax(logits, dim=1).mean(0)).entropy().item()
    )
    assert k.real(logits).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits)).item()
    )
    assert k.fake(logits).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).item()
    )
    both = [x.requires_grad_() for x in (logits, other)]
    k.mean_absolute(*both).backward()
    assert all(x.grad is not None for x in both)  # a generator learns through both


def test_bn_statistics_vanish_for_data_that_has_them() -> None:
    (x,) = _draw(11, (8, 3, 4, 4))
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    assert k.bn_statistics(x, mean=mean, variance=variance).item() == pytest.approx(0.0, abs=1e-12)
    assert k.bn_statistics(x, mean=mean + 2.0, variance=variance).item() == pytest.approx(2.0 * math.sqrt(3))
    rows = x[:, :, 0, 0]
    assert k.bn_statistics(rows, mean=rows.mean(0), variance=rows.var(0, unbiased=False)).item() < 1e-12


def test_every_knowledge_is_registered_with_what_the_trainer_must_know() -> None:
    known = {entry.name: entry for entry in knowledges()}
    assert set(k.__all__) <= set(known)
    assert {name for name, entry in known.items() if entry.levels == "several"} == set(SEVERAL)
    assert {name for name, entry in known.items() if entry.coupled} == {*COUPLED, "dist", "crd", "entropy"}
    assert known["dkd"].needs == {"target"} and known["crd"].needs == {"index"}
    with pytest.raises(ConfigError, match="unknown knowledge 'atention'") as caught:
        knowledge_named("atention")
    assert caught.value.hint == "did you mean 'attention'?"
