"""Ranges of int8 activations: narrowed only for the good of the answers, and biases keep their values."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save

from kp_frontend.model_file import ModelMetadata
from kp_training.export import quantize as quantization
from kp_training.export.ranges import STEP, narrow_ranges

BIAS = np.array([0.3, -0.2], np.float32)


def _image(outlier: float) -> dict[str, np.ndarray]:
    """Two channels of values in 0…1; one value of the second channel is `outlier`."""
    image = np.random.default_rng(0).random((1, 2, 8, 8), np.float32)
    image[0, 1, 4, 4] = outlier
    return {"image": image}


@pytest.fixture(params=["cpu", "tensorrt"])
def made(request, tmp_path, monkeypatch):
    """weight of the second channel, outlier → (quantised with the ranges that were met, float one, blobs)."""
    def make(weight: float, outlier: float):
        weights = np.array([[1, 0], [0.5, weight]], np.float32)[..., None, None]
        constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(BIAS, "bias")]
        shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 8]) for name in ("image", "scores")]
        graph = helper.make_graph([helper.make_node("Conv", ["image", "weights", "bias"], ["scores"], name="only")],
                                  "test", shapes[:1], shapes[1:], constants)
        source = tmp_path / "float.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
        target, blobs = tmp_path / "int8.onnx", [_image(outlier)]
        with monkeypatch.context() as patch:
            patch.setattr(quantization, "narrow_ranges", lambda *_: None)
            quantization.quantize(source, target, blobs, ModelMetadata(
                method="test", variant="", decoder="full", decoder_parameters={}, descriptor_size=2, stride=1,
                color="gray", size_multiple=1, precision="int8", quantized_for=request.param))
        return load(target), load(source), blobs
    return make


def _scale(model) -> float:
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    return float(constants[next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[1]])


def _bias(model) -> np.ndarray:
    """What the layer's bias is worth."""
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    pairs = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    name = next(node for node in model.graph.node if node.op_type == "Conv").input[2]
    if name not in pairs:
        return constants[name]
    integers, scale = (constants[entry] for entry in pairs[name].input[:2])
    return integers * scale


def test_a_value_that_no_answer_needs_is_cut_off(made):
    model, source, blobs = made(0.0, 4.0)
    before = _scale(model)
    left = narrow_ranges(model, source, blobs)
    steps = np.log(_scale(model) / before) / np.log(STEP)
    assert steps == pytest.approx(round(steps), abs=1e-3)
    assert 0.25 * STEP < _scale(model) / before < 0.25 / STEP  # the rest of the values reaches to 1
    assert left < 1e-5
    np.testing.assert_allclose(_bias(model), BIAS, atol=1e-4)


def test_a_value_that_answers_are_made_of_stays(made):
    model, source, blobs = made(1.0, 4.0)
    before = _scale(model)
    narrow_ranges(model, source, blobs)
    assert _scale(model) == before
    np.testing.assert_allclose(_bias(model), BIAS, atol=0.002)


def test_the_error_is_that_of_the_file_as_it_is_left(made):
    model, source, blobs = made(0.02, 4.0)
    left = narrow_ranges(model, source, blobs)
    again = narrow_ranges(model, source, blobs)
    assert again == left
