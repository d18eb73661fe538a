"""What a run says of its time: loading code, the work of stages, and the rest."""

from __future__ import annotations

import builtins
import gc
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.pipeline import clock
from edgekd.pipeline.clock import Clock
from edgekd.report.schema import Timing
from edgekd.stages.kinds import KINDS


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that goes on when somebody moves its hand; modules find it as `builtins.hand`."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(clock.time, "process_time", lambda: made.now / 2)  # others have the machine half of the time
    monkeypatch.setattr(builtins, "hand", made, raising=False)
    return made


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "clocked_inner.py").write_text("hand.now += 2\n")
    (tmp_path / "clocked_outer.py").write_text("hand.now += 3\nimport clocked_inner\n")
    (tmp_path / "clocked_broken.py").write_text("hand.now += 4\nraise ImportError\n")


def test_a_module_is_counted_once_with_all_that_it_loads(hand: SimpleNamespace, modules: None) -> None:
    found, plain = Clock(), builtins.__import__
    with found.importing():
        import clocked_outer  # type: ignore[import-not-found]  # noqa: F401

        hand.now += 10
        with pytest.raises(ImportError):
            import clocked_broken  # type: ignore[import-not-found]  # noqa: F401
    assert builtins.__import__ is plain
    assert found.spent(hand.now + 1) == {
        "import_s": 9.0, "train_s": 0.0, "export_s": 0.0, "compile_s": 0.0, "measure_s": 0.0, "own_s": 11.0,
        "own_cpu_s": 5.0,
    }  # fmt: skip


def test_imports_are_let_be_again_when_what_was_timed_fails() -> None:
    plain = builtins.__import__
    with pytest.raises(RuntimeError), Clock().importing():
        raise RuntimeError
    assert builtins.__import__ is plain


@pytest.mark.parametrize("on", [True, False])
def test_nothing_is_collected_while_a_module_loads_and_all_goes_on_after_it(
    on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "clocked_large.py").write_text(
        "import gc\ndicts = [{0: {}} for _ in range(20_000)]\non = gc.isenabled()\n"
    )
    sys.modules.pop("clocked_large", None)
    was = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with Clock().importing():
            import clocked_large  # type: ignore[import-not-found]
        assert not clocked_large.on
        assert gc.isenabled() == on
        assert gc.get_freeze_count() == 0  # what turns into garbage later is found
    finally:
        (gc.enable if was else gc.disable)()


def test_the_work_of_every_stage_has_its_part(hand: SimpleNamespace) -> None:
    found = Clock()
    for seconds, name in enumerate(KINDS, 1):
        with found.working(name):
            hand.now += seconds
    spent = found.spent(hand.now)
    assert spent.keys() == Timing.model_fields.keys()
    assert spent["own_s"] == spent["own_cpu_s"] == spent["import_s"] == 0.0
    assert sum(spent.values()) - spent["own_cpu_s"] == hand.now
    assert spent["measure_s"] == sum(s for s, name in enumerate(KINDS, 1) if name in ("evaluate", "bench"))
