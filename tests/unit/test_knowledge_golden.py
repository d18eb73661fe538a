"""Every knowledge has the value and the gradient that independent public implementations computed (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill import knowledge

GOLDEN = Path(__file__).parents[1] / "golden"
CASES: dict[str, Any] = json.loads((GOLDEN / "loss_values.json").read_text())["cases"]
FIXTURES: dict[str, Any] = json.loads((GOLDEN / "loss_fixtures.json").read_text())
INPUTS = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "loss_inputs.npz").items()}


def _leaves(names: str | list[str]) -> Any:
    if isinstance(names, str):
        return INPUTS[names].clone().requires_grad_()
    return [INPUTS[name].clone().requires_grad_() for name in names]


def _listed(side: Tensor | list[Tensor]) -> list[Tensor]:
    return [side] if isinstance(side, Tensor) else side


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_published_ones(name: str) -> None:
    case = CASES[name]
    student, teacher = _leaves(case["student"]), _leaves(case["teacher"])
    settings = {key: INPUTS[value] if key == "target" else value for key, value in case["settings"].items()}
    loss = getattr(knowledge, case["function"])(student, teacher, **settings)
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(case["value"], rel=1e-6, abs=0)
    for leaf, norm in zip(_listed(student), case["grad_norm"].values(), strict=True):
        assert leaf.grad is not None
        assert leaf.grad.norm().item() == pytest.approx(norm, rel=1e-6, abs=0)
    assert [leaf.grad for leaf in _listed(teacher)] == [None] * len(_listed(teacher))


@pytest.mark.parametrize("case", FIXTURES["cases"], ids=lambda case: case["function"])
def test_small_cases_have_the_values_that_the_notes_give(case: dict[str, Any]) -> None:
    arrays = {name: torch.tensor(value, dtype=torch.float64) for name, value in FIXTURES["arrays"].items()}
    settings = {key: arrays[value].long() if key == "target" else value for key, value in case["settings"].items()}
    loss = getattr(knowledge, case["function"])(arrays[case["student"]], arrays[case["teacher"]], **settings)
    digits = len(f"{case['value']:.9g}".lstrip("0.").replace(".", ""))
    assert f"{loss.item():.{digits}g}" == f"{case['value']:.{digits}g}"
