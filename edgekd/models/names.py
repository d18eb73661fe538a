"""How a network is named: a name of the zoo, package.module:factory, or a name of another library. Loads no torch."""

from __future__ import annotations

from edgekd.config.settings import did_you_mean
from edgekd.errors import ConfigError

_HOME = "edgekd.models.zoo"
_RESNETS = (
    "resnet8",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet8x4",
    "resnet32x4",
)

_AS_FACTORY = "give `model: package.module:factory`, and the file with its weights as `weights:`"
_NO_NETWORK = "a file of weights is no network"
WEIGHTS_ONLY = {
    ".pt2": "an exported program (.pt2) is refused: its loader has a known hole (CVE) that no version closes, by which "
    "a file can run code"
}

ZOO: dict[str, str] = {
    "convnet": f"{_HOME}.convnet:convnet",
    **{name: f"{_HOME}.resnet:{name}" for name in _RESNETS},
    **{name: f"{_HOME}.wrn:{name}" for name in ("wrn_16_2", "wrn_40_1", "wrn_40_2")},
    **{name: f"{_HOME}.vgg:{name}" for name in ("vgg8", "vgg13")},
    "mobilenetv2": f"{_HOME}.mobilenet:mobilenetv2",
    "shufflenetv2": f"{_HOME}.shufflenet:shufflenetv2",
    "vit_tiny": f"{_HOME}.vit:vit_tiny",
}
"""Name of a built-in network to the "module:function" that makes it."""


HUBS = ("timm", "torchvision", "hf")
"""Libraries whose networks have names of their own: `timm:resnet18`, `torchvision:resnet18`, `hf:FOLDER`."""


def elsewhere(reference: str) -> str | None:
    """Which kind of network from elsewhere a reference names: timm, torchvision, hf or onnx; None for the others."""
    if reference.endswith(".onnx"):
        return "onnx"
    kind, colon, name = reference.partition(":")
    return kind if colon and name and kind in HUBS else None


def check_name(reference: str) -> None:
    """Look at a reference without importing anything.

    Raises:
        ConfigError: a name that the zoo does not know, or a reference that is no "package.module:factory".
    """
    if elsewhere(reference) is not None:
        return
    if reference.endswith((".pt2", ".pt", ".pth", ".bin", ".safetensors")):
        raise ConfigError(f"{reference}: {WEIGHTS_ONLY.get(reference[-4:], _NO_NETWORK)}", hint=_AS_FACTORY)
    module, colon, attribute = reference.partition(":")
    if not colon:
        if reference not in ZOO:
            own = f"{reference}:FACTORY" if "." in reference else "package.module:factory"
            hint = f"{did_you_mean(reference, ZOO)}; a network of your own is written {own}"
            raise ConfigError(f"unknown model {reference!r}", hint=hint)
        return
    words = [*module.split("."), *attribute.split(".")]
    if not all(word.isidentifier() for word in words):
        raise ConfigError(
            f"{reference!r} is no reference to a factory",
            hint="write package.module:factory, e.g. shopnet:ShopNet for the class ShopNet in shopnet.py",
        )
