"""Quantized networks in and out of artefacts: rebuilt over the float network's recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping

from edgekd.models.weights import load_state, save_state
from edgekd.quantize.graph import layers_of, weight_quant
from edgekd.quantize.quantizer import QuantizedNetwork, prepare
from edgekd.quantize.settings import QuantizationSettings
from edgekd.stages.context import Common, Context
from edgekd.stages.networks import CPU, WEIGHTS, data_facts, example_inputs, load_model, metrics
from edgekd.store import Artifact
from edgekd.tasks.task import Score
from edgekd.train.world import Model


def load_quantized(common: Common, artifact: Artifact, original: Artifact) -> Model:
    """The fake-quantized network of an artefact: the float network's graph with the trained weights and scales."""
    model = load_model(common, original)
    example = example_inputs(common, model)
    settings = QuantizationSettings.model_validate_json(json.dumps(artifact.facts["quantization"]))
    network = prepare(model.network, tuple(example.values()), settings, model.outputs)
    network.load_state_dict(load_state(artifact.path(WEIGHTS)))
    return Model(network, model.inputs, model.outputs)


def save_quantized(context: Context, model: Model, scores: Mapping[str, Score], split: str) -> None:
    """Write a fake-quantized network into the stage's draft: it is rebuilt over the float network's recipe."""
    network = model.network.to(CPU)
    assert isinstance(network, QuantizedNetwork)
    save_state(network, context.draft.folder / WEIGHTS)
    settings = network.settings.canonical()
    context.draft.facts.update(
        inputs=model.inputs,
        outputs=model.outputs,
        quantization={name: settings[name] for name in QuantizationSettings.model_fields},
        size_bytes=stored_bits(network) // 8,
        metrics=metrics(scores, split),
        data=data_facts(context.common),
    )


def stored_bits(network: QuantizedNetwork) -> int:
    """Bits of all parameters as they are stored: weights in the bits of their layer, everything else in 32."""
    graph = network.graph_module
    bits = {}
    for layer in layers_of(graph):
        fake_quant = weight_quant(graph, layer.node)
        if fake_quant is not None:
            bits[layer.weight] = fake_quant.bits
    return sum(p.numel() * bits.get(name, 32) for name, p in graph.named_parameters())
