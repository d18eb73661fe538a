"""Options of schemes: what does not fit is explained, plans and keys follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.config import validate
from edgekd.distill.knowledge_settings import KnowledgeSettings
from edgekd.distill.settings import DistillationSettings
from edgekd.pipeline.keys import _effective, _networks, _weights
from edgekd.pipeline.plan import frozen_answers
from edgekd.pipeline.schema import Pipeline, load_pipeline
from edgekd.stages.kinds import KINDS


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"scheme": "offline", "generations": 2}, "generations does nothing in scheme offline", "scheme: self"),
        ({"scheme": "self", "peers": [{"student": "resnet8"}]}, "peers does nothing in scheme self", "scheme: online"),
        ({"scheme": "collaborative", "task_weight": 1}, "task_weight does nothing in scheme coll", "alpha"),
        ({"scheme": "assistant"}, "has no assistants", "assistants: "),
        ({"scheme": "multi_teacher"}, "fewer than two teachers", "teachers: 5"),
        ({"scheme": "multi_teacher", "teachers": 1}, "fewer than two teachers", "teachers: 5"),
        ({"scheme": "self", "generations": 0}, "without a generation", "virtual_teacher"),
        ({"scheme": "onlin"}, "unknown scheme 'onlin'", "did you mean 'online'"),
        ({"scheme": "label_free", "task_weight": 0.5}, "task_weight does nothing in scheme label_free", "offline"),
        ({"scheme": "expansion", "knowledge": ["kd"]}, "knowledge does nothing in scheme expansion", "pseudo-labels"),
        ({"scheme": "federated", "task_weight": 1}, "task_weight does nothing in scheme federated", "temperature"),
        ({"scheme": "data_free", "task_weight": 1}, "task_weight does nothing in scheme data_free", "no true targets"),
        (
            {"scheme": "privileged", "privileged": {}, "knowledge": ["kd"]},
            "privileged and knowledge say",
            "one of them",
        ),
        ({"scheme": "privileged", "privileged": {"imitation": 2}}, "2 is not allowed here", "it should be at most 1"),
        ({"scheme": "multi_task"}, "has no specialists", "multi_task: {teachers"),
        ({"scheme": "offline", "label_free": {}}, "label_free does nothing in scheme offline", "scheme: label_free"),
        ({"scheme": "expansion", "expansion": {"round": 2}}, "unknown key 'round' in expansion", "'rounds'"),
        ({"scheme": "federated", "federated": {"clients": 1}}, "1 is not allowed here", "it should be at least 2"),
        ({"scheme": "cross_modal", "knowledge": []}, "nothing to learn from", "task_weight"),
        ({"scheme": "offline", "options": {"a": 1}}, "options does nothing in scheme offline", "of your own"),
        ({"scheme": "my.mod:f", "peers": []}, "peers does nothing in scheme my.mod:f", "scheme: online"),
        ({"knowledge": ["my.mod:f", {"cosin": {}}]}, "unknown knowledge 'cosin'", "package.module:function"),
        ({"scheme": "online", "peers": [{"student": "resnet9"}]}, "unknown model 'resnet9'", "resnet"),
        ({"scheme": "collaborative", "collaborative": {"terms": ["past", "pear"]}}, "not allowed here", "peer"),
    ],
)
def test_options_that_do_not_fit_are_explained(options: dict[str, Any], message: str, hint: str) -> None:
    settings, problems = validate(DistillationSettings, options)
    assert settings is None
    assert len(problems) == 1
    assert message in problems[0].message
    assert hint in problems[0].hint


def test_defaults_follow_the_scheme() -> None:
    def read(**options: Any) -> DistillationSettings:
        settings, problems = validate(DistillationSettings, options)
        assert settings is not None, problems
        return settings

    assert (read().task(), read().taught(), read().needs_teacher) == (0.1, None, True)
    mutual = read(scheme="online")
    assert (mutual.task(), mutual.needs_teacher) == (1.0, False)
    assert mutual.taught() == (KnowledgeSettings.model_validate_json('{"kd": {"temperature": 1, "weight": 1}}'),)
    assert read(scheme="self", virtual_teacher={}).further_generations() == 0
    assert read(scheme="multi_teacher", teachers=5).needs_teacher
    assert not read(scheme="multi_teacher", teachers=[{"model": "resnet8"}, {"model": "vgg8"}]).needs_teacher


def pipeline(folder: Path, distill: str, teacher: str = "") -> Pipeline:
    path = folder / "p.yaml"
    path.write_text(f"name: p\ndata: {{digits: {{}}}}\nstages:\n{teacher}  - distill: {distill}\n")
    return load_pipeline(path)


@pytest.mark.parametrize(
    ("distill", "teacher", "words"),
    [
        ("{student: resnet8}", True, "teacher cached"),
        ("{student: resnet8, knowledge: [hint]}", True, "teacher live"),
        ("{student: resnet8, scheme: assistant, assistants: [{model: resnet8}]}", True, "teacher cached"),
        ("{student: resnet8, scheme: multi_teacher, teachers: 3}", True, "teacher cached"),
        ("{student: resnet8, scheme: multi_teacher, teachers: [{model: resnet8}]}", False, None),
        ("{student: resnet8, scheme: student_friendly}", True, None),
        ("{student: resnet8, scheme: online}", False, None),
        ("{student: resnet8, scheme: online}", True, None),
        ("{student: resnet8, scheme: self}", False, None),
        ("{student: resnet8, scheme: collaborative}", False, None),
    ],
)
def test_a_plan_says_cached_or_live_only_of_a_teacher_that_is_asked(
    distill: str, teacher: bool, words: str | None, tmp_path: Path
) -> None:
    found = pipeline(tmp_path, distill, "  - teacher: {model: resnet14}\n" if teacher else "")
    answer = frozen_answers(found, found.stages[-1])
    assert answer is None if words is None else str(answer).startswith(words)


def test_a_stages_key_holds_the_weights_and_the_code_of_every_network_that_it_builds(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"one")
    found = pipeline(tmp_path, "{student: resnet8, scheme: online, peers: [{student: 'nets:Peer', weights: w.pt}]}")
    (entry,) = found.stages

    def facts() -> tuple[dict[str, Any], dict[str, Any]]:
        return _weights(found, entry), _networks(found, KINDS["quantize"])["networks"]

    (tmp_path / "nets.py").write_text("class Peer:\n    width = 1\n")
    before = facts()
    assert before[0].keys() == {"weights", "weights.peers.0"}
    assert before[1].keys() == {"distill", "distill.peers.0"}
    (tmp_path / "w.pt").write_bytes(b"two")
    (tmp_path / "nets.py").write_text("class Peer:\n    width = 22\n")
    after = facts()
    assert before[0]["weights.peers.0"] != after[0]["weights.peers.0"]
    assert before[1]["distill.peers.0"] != after[1]["distill.peers.0"]
    assert before[1]["distill"] == after[1]["distill"]
    assert "w.pt" not in str(_effective(entry))
