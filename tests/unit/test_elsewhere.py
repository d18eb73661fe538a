"""Networks by the names of other libraries, and ONNX files: what they are, and what stands for them in a key."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_onnx_safety import with_data_in
from torch import nn

from edgekd.errors import ConfigError, UnavailableError, quiet
from edgekd.models.facts import input_names, macs, parameter_count, size_bytes
from edgekd.models.names import check_name
from edgekd.models.resolve import build, code_digest


def test_an_onnx_file_answers_as_it_says_in_any_batch(tmp_path: Path) -> None:
    path = with_data_in(tmp_path, None)
    network = build("model.onnx", {}, tmp_path)
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(network(x), x @ torch.ones(4, 4))
    assert (parameter_count(network), size_bytes(network), macs(network, (x,))) == (16, 64, None)
    assert input_names(network) == ("x",)
    model = onnx.load(str(path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    path.write_bytes(model.SerializeToString())
    assert torch.equal(build("model.onnx", {}, tmp_path)(x), x @ torch.ones(4, 4))


def test_the_key_of_an_onnx_file_is_its_content_not_its_place(tmp_path: Path) -> None:
    with_data_in(tmp_path / "a", None)
    path = with_data_in(tmp_path / "b", None)
    assert code_digest("a/model.onnx", tmp_path) == code_digest("b/model.onnx", tmp_path)
    path.write_bytes(path.read_bytes() + b"\x12\x01x")
    assert code_digest("a/model.onnx", tmp_path) != code_digest("b/model.onnx", tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        code_digest("c/model.onnx", tmp_path)


@pytest.mark.parametrize("folder", ["a", "b[1]"])
def test_one_bit_of_external_weights_changes_key_and_network_whatever_the_file_is_called(
    folder: str, tmp_path: Path
) -> None:
    path = with_data_in(tmp_path / folder, "weights.bin")
    data = np.ones(16, dtype=np.float32)
    (path.parent / "weights.bin").write_bytes(data.tobytes())
    (path.parent / "model.onnx.md").write_text("not of the network")
    reference = f"{folder}/model.onnx"
    before, buffer = code_digest(reference, tmp_path), build(reference, {}, tmp_path).state_dict()["sha256"]
    (path.parent / "model.onnx.md").write_text("changed")
    assert code_digest(reference, tmp_path) == before
    data.view(np.uint32)[3] ^= 1
    (path.parent / "weights.bin").write_bytes(data.tobytes())
    assert code_digest(reference, tmp_path) != before
    assert not torch.equal(build(reference, {}, tmp_path).state_dict()["sha256"], buffer)
    (path.parent / "weights.bin").unlink()
    with pytest.raises(ConfigError, match=r"keeps weights in 'weights.bin', which is not there"):
        code_digest(reference, tmp_path)


def test_the_key_of_an_onnx_file_that_holds_all_needs_no_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_data_in(tmp_path, None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert code_digest("model.onnx", tmp_path)


def test_an_exported_program_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"\(.pt2\) is refused: its loader has a known hole"):
        check_name("program.pt2")
    with pytest.raises(ConfigError, match="a file of weights is no network"):
        check_name("best.pth")


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18", "hf:folder"])
def test_a_library_that_is_missing_is_named_with_its_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text("{}")
    for module in ("timm", "torchvision", "torchvision.models", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnavailableError) as caught:
        build(name, {}, tmp_path)
    assert "install" in (caught.value.hint or "")


@pytest.mark.parametrize("argument", ["weights", "weights_backbone", "pretrained"])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_nothing_makes_a_library_download_weights(
    library: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, object] = {}

    def segmenter(*, weights: object = None, weights_backbone: object = "IMAGENET", num_classes: int = 9) -> nn.Module:
        got.update(weights=weights, weights_backbone=weights_backbone, num_classes=num_classes)
        return nn.Linear(1, 1)

    def create_model(name: str, **given: object) -> nn.Module:
        got.update(given)
        return nn.Linear(1, 1)

    fake = types.ModuleType(library)
    vars(fake).update(list_models=lambda: ["net"], get_model_builder=lambda name: segmenter, create_model=create_model)
    monkeypatch.setitem(sys.modules, library, fake)
    monkeypatch.setitem(sys.modules, f"{library}.models", fake)
    with pytest.raises(ConfigError, match=f"{argument}='DEFAULT': {library} would download weights"):
        build(f"{library}:net", {argument: "DEFAULT"}, tmp_path)
    build(f"{library}:net", {argument: False}, tmp_path, {"num_classes": 4})
    assert got["num_classes"] == 4
    assert not any(got.get(name) for name in ("weights", "weights_backbone", "pretrained"))


def test_a_timm_network_takes_classes_and_channels_of_the_data(tmp_path: Path) -> None:
    try:
        import timm  # noqa: F401
    except Exception as error:
        pytest.skip(f"timm does not import beside this torch: {error}")
    network = build("timm:resnet18", {}, tmp_path, {"num_classes": 7, "in_channels": 1, "image_size": 64})
    assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 7)
    with pytest.raises(ConfigError, match="timm has no model 'resnet19'"):
        build("timm:resnet19", {}, tmp_path)


class FakeClassifier(nn.Module):
    """What transformers gives: an object with logits."""

    def __init__(self, folder: str, asked: dict[str, object]) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.asked = {"folder": folder, **asked}

    def forward(self, pixel_values: torch.Tensor) -> object:
        return types.SimpleNamespace(logits=self.head(pixel_values.mean(dim=(2, 3))))


def test_a_hugging_face_folder_gives_logits_offline_without_code_or_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeClassifier] = []
    missing: list[str] = []

    class Auto:
        @staticmethod
        def from_pretrained(folder: str, **asked: object) -> tuple[FakeClassifier, dict[str, list[str]]]:
            made.append(FakeClassifier(folder, asked))
            return made[-1], {"missing_keys": missing}

    fake = types.ModuleType("transformers")
    fake.AutoModelForImageClassification = Auto  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", fake)
    with pytest.raises(ConfigError, match=r"has no config.json"):
        build("hf:vit", {}, tmp_path)
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit/config.json").write_text("{}")
    (tmp_path / "vit/model.safetensors").write_bytes(b"1")
    network = build("hf:vit", {}, tmp_path)
    assert network(torch.zeros(2, 3, 4, 4)).shape == (2, 2)
    asked = made[0].asked
    assert (asked["local_files_only"], asked["use_safetensors"], asked["trust_remote_code"]) == (True, True, False)
    missing += ["classifier.weight", "classifier.bias"]
    with pytest.raises(ConfigError, match=r"lacks 2 tensors of the classifier, such as classifier.bias"):
        build("hf:vit", {}, tmp_path)
    before = code_digest("hf:vit", tmp_path)
    (tmp_path / "vit/model.safetensors").write_bytes(b"2")
    assert code_digest("hf:vit", tmp_path) != before


def test_folders_that_transformers_wrote_are_taken_or_refused_with_the_reason(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    written = transformers.ViTForImageClassification(config).eval()
    x = torch.randn(2, 3, 16, 16)
    with quiet():
        written.save_pretrained(tmp_path / "vit")
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "headless")
    with torch.no_grad():
        assert torch.equal(build("hf:vit", {}, tmp_path).eval()(x), written(x).logits)
    with pytest.raises(ConfigError, match=r"lacks 2 tensors of the classifier, such as classifier.bias"):
        build("hf:headless", {}, tmp_path)
    (tmp_path / "vit/model.safetensors").unlink()
    with pytest.raises(ConfigError, match="finds no image classifier there"):
        build("hf:vit", {}, tmp_path)


def test_a_damaged_onnx_file_is_no_network(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(np.zeros(9, dtype=np.uint8).tobytes())
    with pytest.raises(ConfigError, match="not an ONNX file"):
        build("x.onnx", {}, tmp_path)
