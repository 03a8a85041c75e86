"""Ranges of int8 activations: narrowed while that brings the answers nearer to those of the float network.

The largest value met is often far above the rest, which then share few of the 256 steps.  What a range should cut off
is not for its own values to say but for the answers: some networks make their best keypoints of the largest values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kp_frontend.progress import progress_bar
from kp_training.data.posed import evenly

STEP = 0.85
"""What a range is narrowed by at a time."""
COMPARED = 16
"""Blobs that answers are compared on, spread over those given: each range costs two runs of them or more."""

Blobs = Sequence[Mapping[str, np.ndarray]]


def narrow_ranges(model: Any, source: Any, blobs: Blobs) -> float:
    """Narrow the ranges of `model`'s activations in place, one after the other in the order of computation.

    model: quantised onnx.ModelProto; source: the float one; both give maps that can be compared number by number.
    Returns what is left of the error: squared, relative to the square of each answer, summed over the answers.
    """
    chosen = [blobs[index] for index in evenly(len(blobs), COMPARED)]
    expected = _answers(source, chosen)

    def error() -> float:
        return sum(_relative(found, wanted) for found, wanted in zip(_answers(model, chosen), expected))

    scales = _activation_scales(model.graph)
    least = error()
    with progress_bar("ranges", len(scales)) as bar:
        for name in scales:
            least = _narrow(_scaling(model.graph, name), error, least)
            bar.advance()
    return least


def _narrow(scale_by: Callable[[float], None], error: Callable[[], float], least: float) -> float:
    """Narrow one range while the error becomes less than `least`; returns the least."""
    factor = 1.0
    while True:
        scale_by(factor * STEP)
        found = error()
        if not found < least:
            scale_by(factor)
            return least
        factor, least = factor * STEP, found


def _answers(model: Any, blobs: Blobs) -> list[np.ndarray]:
    """All that a model gives for `blobs`: a vector for each output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = [session.run(None, dict(blob)) for blob in blobs]
    return [np.concatenate([values.ravel() for values in maps]).astype(float) for maps in zip(*given)]


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    difference = found - wanted
    return float(difference @ difference / max(wanted @ wanted, 1e-30))


def _activation_scales(graph: Any) -> list[str]:
    """Names of the scales of all activations; a pool and what it reads may share one."""
    return list(dict.fromkeys(node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"))


def _scaling(graph: Any, name: str) -> Callable[[float], None]:
    """What multiplies the scale `name` as it is now, and keeps the values of the biases that are integers of it."""
    from onnx.numpy_helper import from_array, to_array

    entries = {entry.name: entry for entry in graph.initializer}
    biases = _biases(graph, name)
    kept = {key: to_array(entries[key]) for key in (name, *(key for pair in biases for key in pair))}

    def put(key: str, values: np.ndarray) -> None:
        entries[key].CopyFrom(from_array(values.astype(kept[key].dtype), key))

    def scale_by(factor: float) -> None:
        put(name, kept[name] * factor)
        for integers, scale in biases:
            put(scale, kept[scale] * factor)
            put(integers, np.rint(kept[integers] / factor))

    return scale_by


def _biases(graph: Any, name: str) -> list[tuple[str, str]]:
    """(integers, scale) of the quantised bias of each layer that reads an activation of the scale `name`."""
    pairs = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    constant = {entry.name for entry in graph.initializer}
    found = []
    for node in graph.node:
        read = [pairs.get(entry) for entry in node.input]
        if len(read) > 2 and read[0] and read[2] and read[0].input[1] == name and read[2].input[0] in constant:
            found.append((read[2].input[0], read[2].input[1]))
    return found
