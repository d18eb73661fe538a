"""Knowledge of several teachers, and of none, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_collaborative import kl, log_softmax
from torch import Tensor

from edgekd.distill.knowledge import confidence_kd, kd, mean_kd, mean_mse, virtual_teacher


def logits(seed: int, n: int = 6, c: int = 4) -> Tensor:
    return 3 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_kd_is_kl_to_the_mean_of_probabilities() -> None:
    s, teachers, t = logits(0), [logits(i) for i in (1, 2, 3)], 2.0
    p = np.mean([np.exp(log_softmax(z.numpy() / t)) for z in teachers], axis=0)
    expected = t * t * (p * (np.log(p) - log_softmax(s.numpy() / t))).sum(1).mean()
    assert float(mean_kd(s, teachers, temperature=t)) == pytest.approx(expected, rel=1e-9)
    assert float(mean_kd(s, teachers[:1])) == pytest.approx(float(kd(s, teachers[0])), rel=1e-9)
    assert float(mean_mse(s, teachers)) == pytest.approx(float(((s - sum(teachers) / 3) ** 2).mean()), rel=1e-9)


def test_confident_teachers_count_more_sample_by_sample() -> None:
    s, teachers, y = logits(0), [logits(i) for i in (1, 2, 3)], torch.tensor([0, 1, 2, 3, 0, 1])
    errors = np.stack([-log_softmax(z.numpy())[np.arange(6), y] for z in teachers], 1)
    shares = (1 - np.exp(errors) / np.exp(errors).sum(1, keepdims=True)) / 2
    assert shares.sum(1) == pytest.approx(np.ones(6))
    p = sum(shares[:, [k]] * np.exp(log_softmax(z.numpy() / 4)) for k, z in enumerate(teachers))
    expected = 16 * (p * (np.log(p) - log_softmax(s.numpy() / 4))).sum(1).mean()
    assert float(confidence_kd(s, teachers, target=y)) == pytest.approx(expected, rel=1e-9)
    certain = torch.full((6, 4), -20.0, dtype=torch.float64).scatter(1, y[:, None], 20.0)
    wrong = certain.roll(1, dims=1)
    assert float(confidence_kd(s, [certain, wrong], target=y)) == pytest.approx(float(kd(s, certain)), rel=1e-6)


def test_the_virtual_teacher_is_right_with_one_certainty() -> None:
    s, y = logits(0), torch.tensor([0, 1, 2, 3, 0, 1])
    p = np.full((6, 4), 0.1 / 3)
    p[np.arange(6), y] = 0.9
    expected = 400 * kl(np.log(p), s.numpy(), 20.0)
    assert float(virtual_teacher(s, target=y, correct=0.9)) == pytest.approx(expected, rel=1e-9)
    assert float(virtual_teacher(torch.from_numpy(np.log(p)), target=y, correct=0.9)) == pytest.approx(0.0, abs=1e-12)


def test_gradients_go_to_the_student_alone() -> None:
    s, teachers = logits(0).requires_grad_(), [logits(i).requires_grad_() for i in (1, 2)]
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    for value in (mean_kd(s, teachers), confidence_kd(s, teachers, target=y), mean_mse(s, teachers)):
        found = torch.autograd.grad(value, [s, *teachers], allow_unused=True)
        assert found[0].abs().sum() > 0
        assert found[1] is found[2] is None
    assert torch.autograd.gradcheck(lambda z: mean_kd(z, teachers), (s,))
    assert torch.autograd.gradcheck(lambda z: confidence_kd(z, teachers, target=y), (s,))
