"""What schemes keep apart, and what they refuse: working tables, mixed samples, classes that nobody looks at."""

from __future__ import annotations

import pytest
from test_schemes_data import SCHEMES as BY_DATA
from test_schemes import SCHEMES

from edgekd.config import validate
from edgekd.data.settings import DataSettings
from edgekd.train.world import Phase


@pytest.mark.parametrize("name", [*SCHEMES, *BY_DATA])
def test_no_table_of_a_pipeline_file_can_have_the_name_of_one_that_a_scheme_makes(name: str) -> None:
    phases: list[Phase] = {**SCHEMES, **BY_DATA}[name]()
    edits = [edit for phase in phases for edit in phase.start if not edit.touches]  # those that make tables
    made = {table for edit in edits for table in (getattr(edit, "targets", None) or (edit.target,))}  # type: ignore[attr-defined]
    for table in made:
        assert validate(DataSettings, {"digits": {}, "tables": {table: {"digits": {}}}})[1], table
    assert {phase.data for phase in phases if phase.epochs} <= made | {"train", "unlabelled"}
