"""The model card: it tells what the run found, and says of what was not measured that it was not."""

from __future__ import annotations

import dataclasses
import re

from test_report import full, latency

from edgekd.report.model_card import CardFacts, model_card

PATH = "artifacts/builds/ov.int8"
FACTS = CardFacts(
    tasks={"logits": "classification"},
    stages={"teacher": {"model": "resnet56", "epochs": 60}, "distill": {}},
    lineage={PATH: [(PATH, "ab" * 32), ("artifacts/student.uint8.onnx", "cd" * 32)], "other": [("other", "ef" * 32)]},
)


def part(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def test_a_card_has_the_numbers_of_the_run_with_their_intervals() -> None:
    card = model_card(full(), FACTS)
    assert card.startswith("# cifar10\n\nTask: classification (logits). The run ended well.")
    assert "train 45000, validation 5000, test 10000" in part(card, "Data")
    assert "0.984 [0.981, 0.987] | test | 10000" in part(card, "Metrics")
    assert '`teacher`: model: "resnet56", epochs: 60' in part(card, "Training")
    assert "git commit `c0ffee`, with changes that were not committed" in part(card, "Training")
    assert "Licence of the data: MIT." in part(card, "Licence")
    assert "ms" in part(card, "Latency")


def test_a_card_leads_from_the_chosen_build_to_what_it_was_made_from() -> None:
    lineage = part(model_card(full(), FACTS), "Lineage")
    assert f"`{PATH}` (sha256 `{'ab' * 32}`)" in lineage
    assert f"`artifacts/student.uint8.onnx` (sha256 `{'cd' * 32}`)" in lineage
    assert "other" not in lineage
    assert "stage `teacher`: key `k1`" in lineage


def test_what_was_not_measured_is_said_to_be_so() -> None:
    bare = full(models=[], builds=[], latency=[], comparisons=[], gates=[], data=None, git=None)
    card = model_card(bare, dataclasses.replace(FACTS, lineage={}))
    assert "Nothing was built for a device." in card
    assert part(card, "Data").strip() == "The data was never opened."
    assert part(card, "Metrics").strip() == "Nothing was scored."
    assert part(card, "Latency").strip() == "No latency was measured."
    assert "How fast it runs is not known." in part(card, "Limits")
    assert "Nothing was scored on a test split" in part(card, "Limits")
    assert "names no licence" in part(card, "Licence")


def test_what_limits_a_figure_stands_under_limits() -> None:
    disturbed = full(
        latency=[latency("ov", "quantized", "int8", 0.2, contended=True, steady=False)], status="gate_failed"
    )
    card = model_card(disturbed, FACTS)
    assert "**A budget was broken.**" in card
    limits = part(card, "Limits")
    assert "Latency of quantized int8 on ov: contended, not steady." in limits
    assert "On ov 99.80% of 256 answers (top1) are those of pytorch." in limits
