"""Knowledges at the edges: rows of no length, outputs of unlike shapes, half precision; and what they never see."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd.distill import knowledge as k
from edgekd.errors import ConfigError

SEEDS = st.integers(0, 10**6)
few = settings(max_examples=15, deadline=None)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def rotation(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(draw(seed + 1, (size, size))[0]).Q


@pytest.mark.parametrize("name", ["similarity", "pkt", "graph", "crd", "rkd", "correlation"])
@pytest.mark.parametrize("rows", [[1], [0, 1, 2, 3]])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 2, 3)])
def test_a_sample_that_excites_nothing_gets_a_gradient_of_ordinary_size(
    name: str, rows: list[int], shape: tuple[int, ...]
) -> None:
    student, teacher = (x.float() for x in draw(0, shape, shape))
    student[rows] = 0.0
    leaf = student.requires_grad_()
    loss = getattr(k, name)(leaf, teacher)
    loss.backward()
    assert leaf.grad is not None
    assert torch.isfinite(loss)
    assert leaf.grad.norm() < 1e3


@pytest.mark.parametrize("name", ["dist", "logit_std"])
@pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
@pytest.mark.parametrize("teacher_scale", [1.0, 200.0])
def test_a_head_that_gives_one_number_for_all_gets_a_gradient_of_ordinary_size(
    name: str, value: float, teacher_scale: float
) -> None:
    student = torch.full((4, 7), value, requires_grad=True)
    loss = getattr(k, name)(student, teacher_scale * draw(0, (4, 7))[0].float())
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(loss)
    assert 0.0 < student.grad.norm() < 1e2


@pytest.mark.parametrize("name", ["kd", "mse_logits", "mean_kd", "mean_mse"])
def test_half_precision_is_computed_in_float32(name: str) -> None:
    student, teacher = (200 * x for x in draw(0, (4, 10), (4, 10)))
    half = [x.bfloat16() for x in (student, teacher)]
    whole = [x.float() for x in half]
    found, expected = (
        getattr(k, name)(s, [t, -t, 2 * t] if name.startswith("mean") else t)
        for s, t in ((half[0], half[1]), (whole[0], whole[1]))
    )
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_outputs_with_and_without_an_axis_of_one_hold_the_same_values() -> None:
    (student,), (teacher,) = draw(0, (5, 1)), draw(1, (5,))
    expected = (student[:, 0] - teacher).square().mean().item()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert k.mse_logits(student, teacher).item() == pytest.approx(expected)
        assert k.mse_logits(teacher, student).item() == pytest.approx(expected)
        assert k.mean_mse(student, [teacher, teacher]).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: k.kd(torch.zeros(4, 6), torch.zeros(1, 6)), "kd compares logits"),
        (lambda: k.kd(torch.zeros(4, 6), torch.zeros(4, 1)), "kd compares logits"),
        (lambda: k.kd(torch.zeros(4, 6, 5), torch.zeros(4, 6, 5)), "kd compares logits"),
        (lambda: k.mse_logits(torch.zeros(4, 6), torch.zeros(1, 6)), "mse_logits compares as many outputs"),
        (lambda: k.mse_logits(torch.zeros(4, 6), torch.zeros(4, 1)), "mse_logits compares as many outputs"),
        (lambda: k.mean_mse(torch.zeros(4, 6), [torch.zeros(4, 1)]), "mean_mse compares as many outputs"),
        (lambda: k.fsp([torch.zeros(4)] * 2, [torch.zeros(4)] * 2), "fsp compares maps"),
        (lambda: k.review([torch.zeros(4, 6, 5)], [torch.zeros(4, 6, 5)]), "review compares maps"),
        (lambda: k.attention(torch.zeros(4, 6, 1, 1), torch.zeros(4, 6, 4, 4)), "attention compares positions"),
        (lambda: k.nst(torch.zeros(4, 6, 4, 4), torch.zeros(4, 6, 1, 1)), "nst compares positions"),
        (lambda: k.factor(torch.zeros(4, 6, 1, 1), torch.zeros(4, 6, 1, 1)), "factor compares positions"),
    ],
)
def test_what_torch_would_stretch_or_what_says_nothing_is_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert caught.value.hint


@given(SEEDS, st.floats(0.1, 50), st.floats(-20, 20))
@few
def test_responses_do_not_see_what_softmax_or_standardisation_takes_away(seed: int, scale: float, shift: float) -> None:
    student, teacher, shifts = draw(seed, (4, 5), (4, 5), (4, 1))
    for name in ("kd", "dist", "logit_std", "reverse_kl", "jensen_shannon"):
        function = getattr(k, name)
        assert function(student + shift * shifts, teacher - shift).item() == pytest.approx(
            function(student, teacher).item(), rel=1e-6, abs=1e-9
        )
    assert k.logit_std(scale * student, teacher).item() == pytest.approx(
        k.logit_std(student, teacher).item(), rel=1e-4, abs=1e-9
    )


@given(SEEDS, st.floats(0.1, 50))
@few
def test_relations_do_not_see_direction_and_directions_no_scale(seed: int, scale: float) -> None:
    student, teacher = draw(seed, (5, 6), (5, 6))
    turned = student @ rotation(seed, 6)

    def edges(s: Tensor, t: Tensor) -> Tensor:
        return k.graph(s, t, node_weight=0.0)

    for function in (k.rkd, k.similarity, k.pkt, edges):
        assert function(turned, teacher).item() == pytest.approx(function(student, teacher).item(), rel=1e-6)
        assert function(scale * student, teacher).item() == pytest.approx(
            function(student, teacher).item(), rel=1e-4, abs=1e-9
        )
    both = rotation(seed + 2, 6)
    for function in (k.graph, k.crd):
        assert function(student @ both, teacher @ both).item() == pytest.approx(function(student, teacher).item())
        assert function(scale * student, teacher).item() == pytest.approx(function(student, teacher).item(), rel=1e-6)


@given(SEEDS, st.floats(0.1, 50))
@few
def test_maps_are_compared_whatever_the_order_of_channels_or_places(seed: int, scale: float) -> None:
    student, teacher = draw(seed, (3, 4, 3, 5), (3, 6, 3, 5))
    channels = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    places = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    moved = [x.flatten(2)[:, :, places].unflatten(2, (3, 5)) for x in (student, teacher)]
    for function in (k.attention, k.factor, k.nst):
        before = function(student, teacher).item()
        assert function(student[:, channels], teacher).item() == pytest.approx(before)
        assert function(scale * student, teacher).item() == pytest.approx(before)
        assert function(*moved).item() == pytest.approx(before)
    assert k.nst(student * draw(seed, (3, 4, 1, 1))[0].sign(), teacher).item() == pytest.approx(
        k.nst(student, teacher).item()
    )


def test_a_flat_row_correlates_with_nothing_as_in_the_reference() -> None:
    student, teacher = torch.zeros(4, 7, dtype=torch.float64), draw(0, (4, 7))[0]
    assert k.dist(student, teacher, beta=1.0, gamma=1.0, temperature=1.0).item() == pytest.approx(2.0, abs=1e-6)
    rows = [F.softmax(x / 4.0, dim=1) for x in draw(1, (4, 7), (4, 7))]
    pearson = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(*rows, strict=True)])
    found = k.dist(*draw(1, (4, 7), (4, 7)), beta=1.0, gamma=0.0, temperature=4.0).item()
    assert found == pytest.approx(16.0 * (1.0 - pearson.mean().item()))
