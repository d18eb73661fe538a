"""What can be said of any network: its parameters, its multiply-accumulates, the names of its inputs."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def stated(model: nn.Module) -> dict[str, int]:
    """What a network says of itself that cannot be counted on its modules (an ONNX file's parameters and bytes)."""
    facts = getattr(model, "facts", None)
    return dict(facts) if is_file(model) and isinstance(facts, dict) else {}


def is_file(model: nn.Module) -> bool:
    """Whether a network is an ONNX file that an engine answers for: nothing in it can be seen, learned or exported."""
    return type(model).__name__ == "OnnxNetwork" and type(model).__module__ == "edgekd.models.onnx_network"


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are."""
    return stated(model).get("size_bytes") or sum(t.numel() * t.element_size() for t in model.state_dict().values())


def parameter_count(model: nn.Module) -> int:
    """How many numbers are learned; a tensor that is used twice counts once, buffers do not count."""
    return stated(model).get("parameters") or sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> int | None:
    """Multiply-accumulates for one sample: of convolutions (plain and transposed, 1d to 3d) and linear layers.

    None for a network that is an ONNX file.

    One pass in eval mode counts them; the network is left as it was. Products that are no such layer (attention written
    with matmul), biases, normalization and activations are not counted.

    Args:
        model: The network.
        example_inputs: What forward takes, with the batch as first dimension of the first.
    """
    import torch

    if is_file(model):
        return None
    total = 0

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        total += _products(module, args[0], output)

    counted = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.modules.conv._ConvNd))]
    training = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(count) for module in counted]
    try:
        model.eval()
        with torch.no_grad():
            model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in training.items():
            module.training = mode
    return total // example_inputs[0].shape[0]


def input_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the positional parameters of forward, in order; of an ONNX file, of its inputs."""
    if is_file(model):
        names: tuple[str, ...] = model.input_names  # type: ignore[assignment]
        return names
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD})


def _products(module: nn.Module, x: Tensor, output: Tensor) -> int:
    import torch

    if isinstance(module, torch.nn.Linear):
        return output.numel() * module.in_features
    assert isinstance(module, torch.nn.modules.conv._ConvNd)
    kernel = math.prod(module.kernel_size)
    if module.transposed:
        return x.numel() * kernel * module.out_channels // module.groups
    return output.numel() * kernel * module.in_channels // module.groups
