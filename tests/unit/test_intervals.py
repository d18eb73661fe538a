"""Intervals of scores: of shares, of differences between networks that were scored on the same samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgekd.tasks.intervals import paired, wilson
from edgekd.tasks.task import task_named


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_of_a_share_is_wilsons(n: int, share: float) -> None:
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 1))
def test_the_interval_of_pairs_holds_its_value_and_turns_with_the_sides(n: int, apart: float, share: float) -> None:
    discordant = round(apart * n)
    gained = round(share * discordant)
    lost = discordant - gained
    low, high = paired(gained, lost, n)
    assert low <= (gained - lost) / n <= high
    assert paired(lost, gained, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("p_gained", "p_lost"), [(0.0, 0.0), (0.002, 0.01), (0.03, 0.03), (0.05, 0.15)])
def test_intervals_of_pairs_cover_what_they_claim(p_gained: float, p_lost: float) -> None:
    """In 4,000 draws of 500 samples: at least 95%, less three standard errors."""
    drawn = np.random.default_rng(0).multinomial(500, [p_gained, p_lost, 1 - p_gained - p_lost], size=4000)
    ends = np.array([paired(int(b), int(c), 500) for b, c, _ in drawn])
    covered = (ends[:, 0] <= p_gained - p_lost) & (p_gained - p_lost <= ends[:, 1])
    assert covered.mean() > 0.94


def test_the_error_of_two_networks_on_the_same_samples_is_compared_in_pairs() -> None:
    """Both are off by much on the same samples: the difference is small, and so is its interval."""
    generator = torch.Generator().manual_seed(0)
    target, hard = torch.randn(400, 2, generator=generator), torch.randn(400, 1, generator=generator).abs() * 10
    one, other = target + hard + 0.1, target + hard
    task = task_named("regression")
    found = task.difference(one, other, target)
    assert (found.value, found.n, found.better) == (pytest.approx(0.1, abs=1e-4), 400, -1)
    assert found.ci95 == pytest.approx((0.1, 0.1), abs=1e-3)
    low, high = task.metric(one, target).ci95
    assert high - low > 0.5  # each alone is known far less well
    assert task.difference(one, one, target).value == 0.0


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_without_targets_a_difference_is_that_of_the_agreement(name: str) -> None:
    task = task_named(name)
    mine, theirs, best = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(1))
    found = task.difference(mine, theirs, task.answers(best))
    agreement = task.agreement(mine, best).value - task.agreement(theirs, best).value
    assert found.value == pytest.approx(agreement)
    assert found.ci95[0] < found.value < found.ci95[1]


@given(st.integers(1, 10**6))
def test_the_interval_of_none_and_of_all_begins_at_the_end_of_the_scale(n: int) -> None:
    assert wilson(0.0, n)[0] == 0.0
    assert wilson(1.0, n)[1] == 1.0
