"""edgekd check: without data, whether a network can be captured, quantized, exported in 8 bits and built."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import EdgekdError
from edgekd.models.settings import ModelSettings
from edgekd.quantize.settings import QuantizationSettings
from edgekd.runtimes.registry import runtime

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule

    from edgekd.runtimes.protocol import Layer

_BATCH = 2
_SHOWN = 12


@dataclass(frozen=True)
class Step:
    """One thing that was tried: whether it went well, and what there is to say of it."""

    name: str
    ok: bool
    words: str
    hint: str | None = None
    floats: tuple[Mapping[str, str], ...] = ()


@dataclass
class Checked:
    """All that was tried on one network."""

    network: str
    steps: list[Step] = field(default_factory=list)
    error: EdgekdError | None = None
    """What went wrong first, of the highest exit code."""

    @property
    def ok(self) -> bool:
        """Whether everything went well."""
        return all(step.ok for step in self.steps)

    def failed(self, name: str, error: EdgekdError) -> None:
        """Take down what went wrong."""
        self.steps.append(Step(name, False, error.message, error.hint))
        if self.error is None or error.exit_code > self.error.exit_code:
            self.error = error


def check_network(
    settings: ModelSettings,
    inputs: Mapping[str, Sequence[int]],
    quantization: QuantizationSettings,
    targets: Mapping[str, tuple[str, str]],
    base: Path,
) -> Checked:
    """Try a network on noise: build, run, capture, write, quantize, and build it for each engine.

    Args:
        inputs: shapes by name, the batch first; a batch of one is made two, so that nothing can rely on one.
        targets: engine and device by the name of the target.
        base: where paths start.

    Raises:
        EdgekdError: it cannot be built, does not fit its weights, or does not run on such inputs.
    """
    checked = Checked(settings.model)
    tried = _Tried(checked, settings, inputs, quantization, base)
    with tempfile.TemporaryDirectory(prefix="edgekd-check-") as scratch:
        tried.networks(Path(scratch))
        for name, (engine, device) in targets.items():
            tried.build(name, engine, device, Path(scratch))
    return checked


class _Tried:
    """One network on its way; what went wrong is taken down, and what needs it is left out."""

    def __init__(
        self,
        checked: Checked,
        settings: ModelSettings,
        inputs: Mapping[str, Sequence[int]],
        quantization: QuantizationSettings,
        base: Path,
    ) -> None:
        self.checked, self.settings, self.base = checked, settings, base
        self.shapes, self.quantization = inputs, quantization
        self.files: dict[str, Path] = {}
        self.outputs: tuple[str, ...] = ()
        self.modules: dict[str, str] = {}

    def networks(self, folder: Path) -> None:
        """Everything before the engines."""
        from edgekd.models.facts import parameter_count

        network = self._built()
        example, self.outputs = self._run(network)
        shapes = ", ".join(f"{name} {'x'.join(map(str, x.shape[1:]))}" for name, x in example.items())
        self._good("runs", f"{parameter_count(network):,} parameters, {shapes} -> {', '.join(self.outputs)}")
        graph = self._captured(network, example)
        if graph is not None:
            self._exported(network, self._quantized(network, graph, example), example, folder)

    def _built(self) -> nn.Module:
        import torch

        from edgekd.models.resolve import build
        from edgekd.models.weights import apply_state, load_state

        torch.default_generator.manual_seed(0)
        network = build(self.settings.model, self.settings.args, self.base)
        if self.settings.weights is not None:
            path, notes = self.base / self.settings.weights, list[str]()
            apply_state(network, load_state(path, notes), path)
            self._good("weights", "; ".join([f"{path.name} fits", *notes]))
        return network.eval()

    def _run(self, network: nn.Module) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """The inputs as they are tried, and the names of what comes out."""
        import torch

        from edgekd.errors import ConfigError
        from edgekd.models.imports import blame

        generator = torch.Generator().manual_seed(0)
        example = {
            name: torch.randn((max(shape[0], _BATCH), *shape[1:]), generator=generator)
            for name, shape in self.shapes.items()
        }
        try:
            with torch.no_grad():
                result = network(*example.values())
        except Exception as error:  # the user's own forward may raise anything
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in example.items())
            message = f"{self.settings.model} fails on ({shapes}): {blame(error, self.base)}"
            raise ConfigError(message, hint="check --input and --args") from error
        if isinstance(result, dict):
            return example, tuple(map(str, result))
        count = len(result) if isinstance(result, (tuple, list)) else 1
        return example, tuple("output" if count == 1 else f"output_{i}" for i in range(count))

    def _captured(self, network: nn.Module, example: dict[str, Tensor]) -> GraphModule | None:
        from edgekd.quantize.quantizer import capture

        try:
            graph = capture(network, tuple(example.values()))
        except EdgekdError as error:
            self.checked.failed("captured", error)
            return None
        calls = sum(node.op == "call_function" for node in graph.graph.nodes)
        self._good("captured", f"a graph of {calls} operations, its batch axis open")
        return graph

    def _quantized(
        self, network: nn.Module, graph: GraphModule, example: dict[str, Tensor]
    ) -> tuple[GraphModule, set[float]] | None:
        """Quantized on noise: scales mean nothing, places do."""
        from edgekd.quantize.quantizer import convert, prepare
        from edgekd.quantize.stays_float import stays_float

        try:
            quantized = prepare(network, tuple(example.values()), self.quantization, self.outputs, graph)
            quantized(*example.values())
            for fake_quant in quantized.fake_quants():
                fake_quant.set_range("minmax")
            floats, eight = stays_float(quantized.graph_module)
            converted = convert(quantized)
        except EdgekdError as error:
            self.checked.failed("quantized", error)
            return None
        words = f"{eight} layers in {self.quantization.weights} bits, {len(floats)} stay float"
        self.checked.steps.append(Step("quantized", True, words, floats=tuple(floats)))
        return converted, quantized.half_steps()

    def _exported(
        self,
        network: nn.Module,
        converted: tuple[GraphModule, set[float]] | None,
        example: dict[str, Tensor],
        folder: Path,
    ) -> None:
        """Written as ONNX, in 8 bits; in float where 8 bits failed.

        Where 8 bits work, the float file that a run writes as well is not tried. It is written from the network itself,
        and that in 8 bits from its captured graph, operations in place and pools in their plain form
        (quantize/functional.py): a network that can only be written so passes here, and fails in a run.
        """
        from edgekd.export.flavours import to_uint8
        from edgekd.export.onnx_file import check_size, load, save, write_onnx

        precision = "f32" if converted is None else "int8"
        path = folder / f"network.{precision}.onnx"
        try:
            check_size(network, "network.f32.onnx")
            write_onnx(converted[0] if converted else network, example, self.outputs, path, opset=20, metadata={})
            self.files[precision] = path
            if converted is not None:
                self.files["uint8"] = folder / "network.uint8.onnx"
                save(to_uint8(load(path), converted[1]), self.files["uint8"])
        except EdgekdError as error:
            self.checked.failed("exported", error)
            self.files.clear()
            return
        self._good("exported", f"ONNX, opset 20, {path.stat().st_size / 1e6:.2f} MB in {precision}")

    def build(self, name: str, engine_name: str, device: str, scratch: Path) -> None:
        """Build for one target, and read what its engine runs in float."""
        engine = runtime(engine_name)
        folder = scratch / name
        folder.mkdir()
        try:
            engine.version()
            engine.check(device, run=False)
            flavour = engine.flavour("int8").partition("_")[0]
            if flavour not in self.files:
                return
            built = engine.compile(self.files[flavour], folder, device=device, threads=1, options={"precision": "int8"})
        except EdgekdError as error:
            self.checked.failed(name, error)
            return
        if not built.layers:
            self._good(name, f"built; {engine_name} tells only where it runs which layers are in 8 bits")
            return
        floats = [layer for layer in built.layers if layer.precision not in ("int8", "uint8")]
        words = f"{len(built.layers) - len(floats)} layers run in 8 bits, {len(floats)} in float"
        rows = tuple(_row(layer, engine_name) for layer in floats)
        self.checked.steps.append(Step(name, True, words, floats=rows))

    def _good(self, name: str, words: str) -> None:
        self.checked.steps.append(Step(name, True, words))


_NO_KERNEL = {
    "Softmax", "LayerNormalization", "SoftMax", "Gelu", "Erf", "Sigmoid", "Tanh", "InstanceNormalization", "MVN",
    "GroupNormalization", "HardSwish", "HardSigmoid", "BiasGelu", "Exp", "ReduceMean",
}  # fmt: skip
_COPIES = {"QuantizeLinear", "DequantizeLinear", "FakeQuantize", "Quantize"}


def _row(layer: Layer, engine: str) -> dict[str, str]:
    """A layer that an engine runs in float, and why as far as its kind tells."""
    if layer.kind in _COPIES:
        why = "turns numbers into 8 bits or back"
    elif layer.kind in _NO_KERNEL:
        why = f"{engine} has no 8-bit form of it"
    elif layer.kind == "FusedConv":
        why = f"{engine} fused it with an activation that 8 bits cannot hold"
    elif layer.kind in ("Conv", "Convolution", "Gemm", "FullyConnected", "MatMul", "FusedGemm"):
        why = f"{engine} runs it in 8 bits only where what reads it takes 8 bits; answers of a network are float"
    else:
        why = f"{engine} found nothing in 8 bits on both sides of it"
    return {"layer": layer.name, "kind": layer.kind, "precision": layer.precision, "why": why}


def lines_of(checked: Checked) -> list[str]:
    """What was found, for people."""
    lines = [f"{checked.network}"]
    for step in checked.steps:
        lines.append(f"  {step.name:<12} {'yes' if step.ok else 'NO '}  {step.words}")
        if step.hint and not (checked.error and step.hint == checked.error.hint):  # that follows as the error
            lines.append(f"  {'':<12}      help: {step.hint}")
        for row in step.floats[:_SHOWN]:
            lines.append(f"  {'':<12}      {row['layer']} ({row['kind']}): {row['why']}")
        if len(step.floats) > _SHOWN:
            lines.append(f"  {'':<12}      and {len(step.floats) - _SHOWN} more (all with --json)")
    return lines


def document(checked: Checked) -> dict[str, Any]:
    """The same as plain values."""
    rows = [{**vars(step), "floats": [dict(row) for row in step.floats]} for step in checked.steps]
    return {"network": checked.network, "ok": checked.ok, "steps": rows}
