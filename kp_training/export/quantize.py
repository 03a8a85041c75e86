"""int8 by static quantisation: a float graph → the same with QuantizeLinear / DequantizeLinear around its features.

What is quantised follows from a layer's place, not from its name: all layers with weights, and what lies between two
of them.  What the last layers give stays float: keypoints are local maxima, and 256 values would make plateaus of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata
from kp_training.export.ranges import narrow_ranges

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = ("Add", "AveragePool", "Concat", "MaxPool")
"""Quantised where layers are quantised before and after it, so that no float is left between."""
PASSING = ("BatchNormalization", "Clip", "DepthToSpace", "Elu", "LeakyRelu", "PRelu", "Relu", "Resize")
"""Stays as it is between two layers: engines fold it into the layer before, or have it in float only (Resize)."""


@dataclass(frozen=True)
class Target:
    """What a kind of engine wants.  symmetric: activations are int8 around 0, else uint8.  bias: int32, else float."""

    symmetric: bool
    bias: bool


TARGETS = {"cpu": Target(symmetric=False, bias=True), "tensorrt": Target(symmetric=True, bias=False)}


def quantize(
    source: Path, target: Path, blobs: Sequence[Mapping[str, np.ndarray]], metadata: ModelMetadata
) -> None:
    """Write the float32 ONNX file `source` as int8 to `target`, for ``metadata.quantized_for``.

    blobs: inputs of the graph by name, whose activations set the ranges: smallest and largest value met, for the dense
    profile narrowed by what the answers lose (`narrow_ranges`).  Weights are int8 with a scale for each output
    channel.  The metadata in the file is not carried over.
    Raises InputError without blobs, or where nothing in the graph can be quantised.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if not blobs:
        raise InputError("int8 needs images to calibrate on; give a folder of them as --calibration")
    wanted = TARGETS[metadata.quantized_for or "cpu"]
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # The symbolic shapes that it would infer fail on graphs with dynamic sizes.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        chosen = chosen_nodes(model.graph)
        if not chosen:
            raise InputError(f"{target}: the network has no layer with constant weights to quantise; export it as fp32")
        quantize_static(
            model, str(target), _Reader(blobs), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8 if wanted.symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
            nodes_to_quantize=sorted(chosen),
            # Forced, since otherwise a pool between an activation and a layer would stay float.
            extra_options={"ActivationSymmetric": wanted.symmetric, "WeightSymmetric": True,
                           "QuantizeBias": wanted.bias, "QDQKeepRemovableActivations": True,
                           "ForceQuantizeNoInputCheck": True},
        )
    model = onnx.load(str(target))
    _drop_unused_pairs(model.graph, chosen)
    if metadata.profile == "dense":  # a list of points that changed places would look all wrong
        narrow_ranges(model, onnx.load(str(source)), blobs)
    onnx.save(model, str(target))


def chosen_nodes(graph: Any) -> set[str]:
    """Names of the nodes of an onnx.GraphProto that are quantised, see the module's text.

    A convolution over a single map that layers made stays float, and what leads to it: such a map is an answer, not
    features (compact's reliability, which it spreads over the pixels).
    """
    links = _Links(graph)
    constant = {entry.name: entry.dims for entry in graph.initializer}
    made: set[str] = set()
    chosen: set[str] = set()
    for node in graph.node:  # in the order of computation
        weighted = node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in constant
        if weighted and not (_single(node, constant) and made.intersection(node.input)):
            chosen.add(node.name)
        if weighted or made.intersection(node.input):
            made.update(node.output)
    before = _reached(reversed(graph.node), chosen, links.consumers)
    after = _reached(graph.node, chosen, links.producers)
    return chosen | {node.name for node in graph.node if node.op_type in BETWEEN and node.name in before & after}


def _single(node: Any, constant: Mapping[str, Sequence[int]]) -> bool:
    """Whether a convolution reads one channel, not one in each of many groups."""
    groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return node.op_type == "Conv" and constant[node.input[1]][1] == groups == 1


def _reached(nodes: Iterable[Any], chosen: set[str], linked: Callable[[Any], Iterable[Any]]) -> set[str]:
    """Names of the nodes that are linked to `chosen`, directly or over BETWEEN and PASSING; nodes: in that order."""
    reached: set[str] = set()
    for node in nodes:
        if any(other.name in chosen or (other.op_type in BETWEEN + PASSING and other.name in reached)
               for other in linked(node)):
            reached.add(node.name)
    return reached


class _Links:
    """Who makes and who takes each tensor of a graph."""

    def __init__(self, graph: Any) -> None:
        self.maker = {name: node for node in graph.node for name in node.output}
        self.takers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.takers.setdefault(name, []).append(node)

    def producers(self, node: Any) -> list[Any]:
        return [self.maker[name] for name in node.input if name in self.maker]

    def consumers(self, node: Any) -> list[Any]:
        return [taker for name in node.output for taker in self.takers.get(name, ())]


def _drop_unused_pairs(graph: Any, chosen: set[str]) -> None:
    """Take out the pairs whose values no chosen node reads: behind the last layers, and before an activation.

    ONNX Runtime's tool puts one behind every layer; a layer that ends in int8 could not have its activation folded in
    without rounding twice, and an answer would lose its precision.
    """
    links, outputs, dropped = _Links(graph), {entry.name for entry in graph.output}, set()
    for node in graph.node:
        pair = links.consumers(node)
        if node.op_type != "QuantizeLinear" or [other.op_type for other in pair] != ["DequantizeLinear"]:
            continue
        before, after, readers = node.input[0], pair[0].output[0], links.consumers(pair[0])
        if any(reader.name in chosen for reader in readers):
            continue
        if after in outputs:
            _rename(links.takers.get(before, ()), before, after)
            maker = links.maker[before]
            maker.output[list(maker.output).index(before)] = after
        else:
            _rename(readers, after, before)
        dropped |= {node.name, pair[0].name}
    nodes = [node for node in graph.node if node.name not in dropped]
    read = {name for node in nodes for name in node.input}
    _replace(graph.node, nodes)
    _replace(graph.initializer, [entry for entry in graph.initializer if entry.name in read])


def _replace(entries: Any, kept: Sequence[Any]) -> None:
    del entries[:]
    entries.extend(kept)


def _rename(readers: Iterable[Any], old: str, new: str) -> None:
    for reader in readers:
        for place, name in enumerate(reader.input):
            if name == old:
                reader.input[place] = new


class _Reader:
    """Blobs as onnxruntime's CalibrationDataReader."""

    def __init__(self, blobs: Sequence[Mapping[str, np.ndarray]]) -> None:
        self._blobs = iter(blobs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        blob = next(self._blobs, None)
        return None if blob is None else dict(blob)
