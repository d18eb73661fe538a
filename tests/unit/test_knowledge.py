"""Response knowledge against values computed independently (METHODS.md), and the properties it claims."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.distill.knowledge import kd, mse_logits
from edgekd.distill.schemes.terms import knowledge_of, response_terms, task_terms
from edgekd.distill.settings import KdSettings, KnowledgeSettings
from edgekd.errors import ConfigError
from edgekd.tasks import heads_of
from edgekd.tasks.classification import cross_entropy
from edgekd.train.knowledge import knowledge_named, register

Z_S = torch.tensor([[1, 2, 3], [0.5, -1, 0]], dtype=torch.float64)
Z_T = torch.tensor([[3, 1, 0.2], [0, 2, -1]], dtype=torch.float64)
Y = torch.tensor([0, 1])


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 1.505805), (4.0, 1.846057), (1e4, 1.771667)])
def test_kd_has_the_published_values(temperature: float, expected: float) -> None:
    assert kd(Z_S, Z_T, temperature=temperature).item() == pytest.approx(
        expected, abs=2e-4 if temperature > 10 else 5e-7
    )


def test_kd_and_cross_entropy_combine_as_published() -> None:
    loss = 0.1 * cross_entropy(Z_S, target=Y) + 0.9 * kd(Z_S, Z_T, temperature=4.0)
    assert loss.item() == pytest.approx(1.887038, abs=5e-7)


@given(st.integers(1, 5), st.integers(2, 7), st.floats(0.5, 20), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_kd_is_not_negative_and_zero_for_equal_logits(rows: int, classes: int, temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    assert kd(a, a, temperature=temperature).item() == pytest.approx(0.0, abs=1e-12)
    assert kd(a, b, temperature=temperature).item() >= -1e-12
    assert kd(a + 3.0, b - 2.0, temperature=temperature).item() == pytest.approx(
        kd(a, b, temperature=temperature).item()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kd_stays_finite_at_logit_scale_200(dtype: torch.dtype) -> None:
    logits = (torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) * 200).to(dtype)
    assert torch.isfinite(kd(logits, -logits, temperature=1.0))


@pytest.mark.parametrize("knowledge", [kd, mse_logits])
def test_the_teacher_gets_no_gradient(knowledge: object) -> None:
    student, teacher = Z_S.clone().requires_grad_(), Z_T.clone().requires_grad_()
    knowledge(student, teacher).backward()  # type: ignore[operator]
    assert teacher.grad is None
    assert student.grad is not None


def test_each_head_gets_the_knowledge_that_fits_it() -> None:
    heads = heads_of({"kind": "classification", "angle": "regression"}, ("kind", "angle"))
    given_kd = (KnowledgeSettings(kd=KdSettings(temperature=2.0)),)
    terms = response_terms("student", "teacher", heads, lambda head: knowledge_of(head, given_kd))
    assert [(t.knowledge, t.student, t.name, dict(t.settings)) for t in terms] == [
        ("kd", "student[kind]", "kind.kd", {"temperature": 2.0}),
        ("mse_logits", "student[angle]", "angle.mse_logits", {}),
    ]
    assert [t.name for t in task_terms("student", heads, 0.1)] == ["kind.cross_entropy", "angle.squared_error"]
    assert task_terms("student", heads, 0.0) == ()


def test_a_knowledge_of_ones_own_is_found_by_import_string_and_names_stay_unique() -> None:
    assert knowledge_named("torch.nn.functional:mse_loss").function is torch.nn.functional.mse_loss
    with pytest.raises(ConfigError, match="unknown knowledge 'kdd'"):
        knowledge_named("kdd")
    with pytest.raises(ConfigError, match="has no 'no_such_loss'"):
        knowledge_named("torch.nn.functional:no_such_loss")
    with pytest.raises(ValueError, match="registered already"):
        register("kd", mse_logits)
