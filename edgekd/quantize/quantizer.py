"""From a float network to a quantized one: capture, fold BatchNorm, place fake-quant, calibrate, convert to Q/DQ."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from edgekd.errors import ExportError, first_line, quiet
from edgekd.quantize.functional import BATCH_NORM, functional_module, own_batch_norm
from edgekd.quantize.places import without_places
from edgekd.quantize.settings import QuantizationSettings

if TYPE_CHECKING:
    from edgekd.quantize.calibration import Calibration
    from edgekd.quantize.sensitivity import Mixture

_MAX_BATCH = 1 << 20
_INT8 = (-128, 127)
_SAME = 1e-2  # of the outputs' size: folding a BatchNorm rounds


class QuantizedNetwork(nn.Module):
    """A captured network with fake-quant modules: trained and called like any other.

    It was captured in eval mode (BatchNorm folded, dropout gone), so `train` and `eval` change nothing but the flag.
    `calibration` says how its scales were found, `mixture` how the bits of its layers were.
    """

    calibration: Calibration | None
    mixture: Mixture | None

    def __init__(self, graph: GraphModule, settings: QuantizationSettings) -> None:
        super().__init__()
        self.graph_module = graph
        self.settings, self.calibration, self.mixture = settings, None, None

    def forward(self, *inputs: Tensor) -> Any:
        return self.graph_module(*inputs)

    def train(self, mode: bool = True) -> QuantizedNetwork:
        """Set the flag only: a captured graph has one mode."""
        self.training = mode
        return self

    def fake_quants(self) -> list[Any]:
        """Every fake-quant module, each once."""
        from edgekd.quantize.fake_quant import FakeQuant

        return [m for m in self.graph_module.modules() if isinstance(m, FakeQuant)]

    def in_int8(self) -> QuantizedNetwork:
        """A copy on the grids of the int8 file, which are coarser where a tensor has levels 0 .. 255; its biases are
        rounded, in the steps that the finer ones have."""
        from edgekd.quantize.biases import write_biases

        with quiet():
            found = copy.deepcopy(self)
        write_biases(found.graph_module)
        for fake_quant in found.fake_quants():
            fake_quant.coarsen()
        return found

    def half_steps(self) -> set[float]:
        """The scales of `in_int8` whose grids have a level between any two here (float32 values)."""
        finer = [f for f in self.fake_quants() if f.beyond_int8]
        return {2 * float(f.calculate_qparams()[0]) for f in finer}

    def set_mode(self, mode: str) -> None:
        """Let every fake-quant observe (forgetting what it saw), round, or pass values on."""
        for fake_quant in self.fake_quants():
            fake_quant.set_mode(mode)

    def forget(self) -> None:
        """Forget what was observed: the scales are known."""
        for fake_quant in self.fake_quants():
            fake_quant.forget()


def capture(network: nn.Module, example: tuple[Tensor, ...]) -> GraphModule:
    """The network as a graph of aten operations with a dynamic batch axis; `example` holds at least two samples.

    Raises:
        ExportError: torch.export cannot follow the network; the message names the line of its code.
    """
    network = copy.deepcopy(network).eval()  # a graph shares its parameters with what it was captured from
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    shapes = tuple({0: batch} for _ in example)
    try:
        with quiet():
            return functional_module(torch.export.export(network, example, dynamic_shapes=shapes))
    except Exception as error:  # torch.export raises many kinds, all of them about the user's network
        raise ExportError(
            f"the network cannot be captured as a graph: {first_line(error)}{_code_line(error, network)}",
            hint="its forward must not branch on tensor values or fix the batch size; `torch.export.export` shows more",
        ) from error


def prepare(
    network: nn.Module,
    example: tuple[Tensor, ...],
    settings: QuantizationSettings,
    outputs: tuple[str, ...] = ("output",),
    graph: GraphModule | None = None,
) -> QuantizedNetwork:
    """A float network (eval mode) as one with fake-quant modules that still observe: calibration comes next.

    Args:
        network: stays as it is.
        example: inputs of at least two samples.
        settings: what is quantized, to how many bits.
        outputs: names of what the network returns.
        graph: what `capture` gave for it, where that is at hand; it is used up.
    """
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

        from edgekd.quantize.biases import add_bias_grids
        from edgekd.quantize.graph import layers_of
        from edgekd.quantize.placement import Placement
        from edgekd.quantize.tied import untie

    graph = capture(network, example) if graph is None else graph
    untie(graph)
    for node in list(graph.graph.nodes):
        if node.target is BATCH_NORM and len(node.args[0].users) > 1:
            node.target = own_batch_norm  # torchao would fold it into a layer whose own output others read
    with quiet():
        prepared = prepare_pt2e(graph, Placement(settings, outputs))
    _retarget(prepared, own_batch_norm, BATCH_NORM)
    add_bias_grids(prepared)
    quantized = QuantizedNetwork(prepared, settings)
    for parameter in quantized.parameters():
        parameter.requires_grad_(True)  # folding leaves the biases it made without gradients
    if not quantized.fake_quants():
        if layers_of(prepared):
            raise ExportError(
                "every layer of the network stays float, so there is nothing to quantize",
                hint="raise float_above, or name fewer in `layers` and `float_outputs`",
            )
        raise ExportError(
            "nothing in the network can be quantized: it has no convolution and no linear layer",
            hint="leave the `quantize` stage out for this network",
        )
    _check_same(network, quantized, example)
    return quantized


@torch.no_grad()
def _check_same(network: nn.Module, quantized: QuantizedNetwork, example: tuple[Tensor, ...]) -> None:
    """See that without any rounding the captured network is the one that it was captured from."""
    quantized.set_mode("passing")
    said = []
    for one in (copy.deepcopy(network).eval(), quantized):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            said.append([x.double() for x in tree_leaves(one(*example)) if isinstance(x, Tensor)])
    quantized.set_mode("observing")
    for exact, found in zip(*said, strict=True):
        off = float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt().clamp_min(1e-12))
        if exact.numel() and exact.isfinite().all() and not off <= _SAME:  # NaN is beyond every limit
            raise ExportError(
                f"the network as it is captured for quantization gives other values, off by {off:.1e} of their size",
                hint="does its forward write into a part of a tensor? write it as a new one, e.g. with torch.cat",
            )


def convert(network: QuantizedNetwork) -> GraphModule:
    """The network with explicit quantize/dequantize operations in int8 and stored weights, ready for ONNX.

    ONNX has no type below 8 bits that engines take for activations: those are clipped to their own levels before they
    are quantized, and so are simulated in 8 bits. Weights need nothing, they are stored with their levels.
    """
    with quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

        graph = without_places(network.in_int8().graph_module)
        _retarget(graph, BATCH_NORM, own_batch_norm)
        graph = convert_pt2e(graph)
        _retarget(graph, own_batch_norm, BATCH_NORM)
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    for node in graph.graph.nodes:
        if node.target is quantize and (node.args[3], node.args[4]) != _INT8:
            x, scale, _, low, high, _ = node.args
            with graph.graph.inserting_before(node):
                clipped = graph.graph.call_function(torch.ops.aten.clamp.default, (x, low * scale, high * scale))
            node.replace_input_with(x, clipped)
    graph.recompile()
    return graph


def _retarget(graph: GraphModule, old: Any, new: Any) -> None:
    for node in graph.graph.nodes:
        if node.target is old:
            node.target = new
    graph.recompile()


def _code_line(error: BaseException, network: nn.Module) -> str:
    """` (file:line)` of the deepest frame that lies in the network's own code, if any."""
    import inspect
    from pathlib import Path

    files = set()
    for module in network.modules():
        try:
            files.add(inspect.getsourcefile(type(module)))
        except TypeError:
            continue
    torch_folder = str(Path(torch.__file__).parent)
    trace, found = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name in files and not name.startswith(torch_folder):
            found = f" ({Path(name).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found
