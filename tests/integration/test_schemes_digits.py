"""Schemes keep their promises of METHODS.md on digits: rows of benchmarks/schemes_digits.py, one seed each.

The benchmark has five seeds and intervals. Here each row runs on a seed that keeps its limits by a margin, so that a
scheme that stops working fails, and not one that is unlucky. Rows of more than half a minute are left to the benchmark.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SEEDS = {
    "adaptation": 1,
    "cross_modal": 2,
    "expansion": 3,
    "federated": 3,
    "label_free": 0,
    "multi_teacher": 1,
    "online": 1,
    "privileged": 0,
    "quantization_aware": 0,
    "self": 0,
}
# Where less training than the benchmark's shows the same by a margin.
SHORTER: dict[str, dict[str, int]] = {
    "adaptation": {"epochs": 20},
    "expansion": {"epochs": 30},
    "federated": {"epochs": 30},
    "multi_teacher": {"teacher_epochs": 150},
    "self": {"epochs": 100},
}


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, Any]]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import digits_rows
        import digits_teaching

        yield digits_teaching.ROWS | digits_rows.ROWS
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SEEDS))
def test_a_scheme_keeps_its_promise_on_digits(name: str, rows: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    row = rows[name]
    found = row.arms(SEEDS[name], **SHORTER.get(name, {}))
    for limit in row.limits:
        gain = found[limit.arm] - found[limit.over]
        assert limit.least is None or gain >= limit.least, (
            f"{limit.arm} - {limit.over}: {gain:+.1f}, at least {limit.least}"
        )
        assert limit.most is None or gain <= limit.most, (
            f"{limit.arm} - {limit.over}: {gain:+.1f}, at most {limit.most}"
        )
