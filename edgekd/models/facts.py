"""What can be said of any network: its parameters, its multiply-accumulates, the names of its inputs."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def parameter_count(model: nn.Module) -> int:
    """How many numbers are learned; a tensor that is used twice counts once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates for one sample: of convolutions (plain and transposed, 1d to 3d) and linear layers.

    One pass in eval mode counts them; the network is left as it was. Products that are no such layer (attention written
    with matmul), biases, normalization and activations are not counted.

    Args:
        model: The network.
        example_inputs: What forward takes, with the batch as first dimension of the first.
    """
    import torch

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
    """Names of the positional parameters of forward, in order."""
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
