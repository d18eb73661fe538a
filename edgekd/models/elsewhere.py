"""Networks that come by another name than package.module:factory: timm, torchvision, Hugging Face folders, ONNX files.

`timm:resnet18`, `torchvision:mobilenet_v3_small`, `hf:FOLDER`, `file.onnx`. Nothing is downloaded: weights are files.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError, UnavailableError, first_line, install_hint, quiet
from edgekd.files import sha256_file, sha256_json
from edgekd.models.names import elsewhere
from edgekd.models.onnx_safety import digest_onnx

if TYPE_CHECKING:
    from torch import Tensor, nn

_PACKAGES = {"timm": ("timm", "torchvision"), "torchvision": ("torchvision",), "hf": ("transformers", "timm")}


def factory_of(reference: str, base: Path) -> Callable[..., nn.Module]:
    """What makes the network of a reference that `names.elsewhere` knows; `base` is where paths start.

    Raises:
        ConfigError: the library has no such network, or the path leads nowhere.
        UnavailableError: the library is not installed, or does not import.
    """
    kind, name = _split(reference)
    if kind == "onnx":
        return lambda: _onnx(base / name)
    if kind == "timm":
        return _timm(name)
    return _torchvision(name) if kind == "torchvision" else _hugging_face(_folder(reference, base / name))


def digest_elsewhere(reference: str, base: Path) -> str:
    """What stands for such a network in a stage's key: versions of libraries, and the bytes of files.

    Raises:
        ConfigError: the path leads nowhere.
    """
    kind, name = _split(reference)
    files = {}
    if kind == "onnx":
        if not (base / name).is_file():
            raise ConfigError(f"{base / name}: no such file", hint="paths are relative to the pipeline file")
        files = {Path(name).name: digest_onnx(base / name)}
    elif kind == "hf":
        folder = _folder(reference, base / name)
        files = {path.name: sha256_file(path) for path in sorted(folder.glob("*")) if path.suffix in _HF_FILES}
    versions = {package: _version(package) for package in _PACKAGES.get(kind, ("onnxruntime",))}
    return sha256_json({"reference": kind if files else reference, "files": files, "versions": versions})


_HF_FILES = (".json", ".safetensors")


def _split(reference: str) -> tuple[str, str]:
    kind = elsewhere(reference)
    assert kind is not None
    return kind, reference if kind == "onnx" else reference.partition(":")[2]


def _onnx(path: Path) -> nn.Module:
    from edgekd.models.onnx_network import OnnxNetwork

    return OnnxNetwork(path)


def _timm(name: str) -> Callable[..., nn.Module]:
    timm = _library("timm", install_hint("timm", "timm"))
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise ConfigError(f"timm has no model {name!r}", hint=did_you_mean(name, known[:10_000]))

    def make(num_classes: int = 1000, in_channels: int = 3, **args: Any) -> nn.Module:
        given = {"num_classes": num_classes, "in_chans": in_channels, **_without_downloads("timm", args)}
        network: nn.Module = timm.create_model(name, pretrained=False, **given)
        return network

    return make


def _torchvision(name: str) -> Callable[..., nn.Module]:
    models = _library("torchvision.models", "install the torchvision that was built for this torch")
    known = models.list_models()
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}", hint=did_you_mean(name, known))

    def make(num_classes: int = 1000, **args: Any) -> nn.Module:
        given = {"num_classes": num_classes, **_without_downloads("torchvision", args)}
        builder = models.get_model_builder(name)
        # Segmentation and detection would fetch their backbone's weights unless told not to.
        none = dict.fromkeys(set(_DOWNLOADS) & set(inspect.signature(builder).parameters))
        network: nn.Module = builder(**given, **none)
        return network

    return make


_DOWNLOADS = ("weights", "weights_backbone", "pretrained", "pretrained_backbone")


def _without_downloads(library: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments but for those that ask for weights from elsewhere, which have to be false."""
    for name in _DOWNLOADS:
        if args.get(name):
            raise ConfigError(
                f"{name}={args[name]!r}: {library} would download weights, and edgekd downloads nothing",
                hint="save them to a file once (torch.save of the state_dict) and give it as weights",
            )
    return {name: value for name, value in args.items() if name not in _DOWNLOADS}


def _hugging_face(folder: Path) -> Callable[..., nn.Module]:
    """The image classifier in a folder of `save_pretrained`, with its weights; forward gives logits (N, classes)."""
    transformers = _library("transformers", install_hint("hf", "transformers"))
    from torch import nn

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            asked = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
            try:
                with quiet():
                    self.network, told = transformers.AutoModelForImageClassification.from_pretrained(
                        str(folder), output_loading_info=True, **asked
                    )
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{folder}: transformers finds no image classifier there: {first_line(error)}",
                    hint="give the folder that `save_pretrained` wrote, with model.safetensors",
                ) from error
            # transformers fills what is missing with random numbers, and only warns.
            if missing := sorted(told["missing_keys"]):
                raise ConfigError(
                    f"{folder}: model.safetensors lacks {len(missing)} tensors of the classifier, such as {missing[0]}",
                    hint="give the folder of a network that was trained as an image classifier",
                )

        def forward(self, pixel_values: Tensor) -> Tensor:
            found: Tensor = self.network(pixel_values=pixel_values).logits
            return found

    return Logits


def _folder(reference: str, folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{reference}: {folder} has no config.json", hint="give a folder that `save_pretrained` wrote"
        )
    return folder


def _library(name: str, command: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        raise UnavailableError(
            f"{name.partition('.')[0]} needs {missing}, which is not installed", hint=command
        ) from None
    except Exception as error:  # torchvision's wheel raises RuntimeError beside a torch that it was not built for
        raise UnavailableError(f"{name} does not import: {first_line(error)}", hint=command) from error


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
