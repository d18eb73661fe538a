"""How an epoch is shared out, without any process."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from edgekd.train.distributed import Ranks, Shares


@given(st.integers(1, 400), st.integers(1, 64), st.integers(1, 5), st.integers(1, 3))
def test_no_row_is_visited_twice_and_none_is_left_out(rows: int, batch: int, processes: int, accumulate: int) -> None:
    visited: list[int] = []
    sizes = []
    largest = 0
    for rank in range(processes):
        shares = Shares(rows, max(batch, processes * accumulate), accumulate, Ranks(rank, processes))
        for start, stop in shares.mine():
            visited += range(start, stop)
            sizes.append(stop - start)
        largest = shares.largest
    assert sorted(visited) == list(range(rows))
    assert max(sizes) <= largest
    if rows >= processes * accumulate:
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 2


@given(st.integers(1, 400), st.integers(1, 64))
def test_steps_are_equal_and_as_few_as_the_batch_allows(rows: int, batch: int) -> None:
    shares = Shares(rows, batch, 1, Ranks())
    sizes = [stop - start for start, stop in map(shares.step, range(shares.steps))]
    assert shares.steps == math.ceil(rows / batch)
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
