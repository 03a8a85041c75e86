"""int8 files: what is quantised, how, and that they find what the float network finds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported import untrained
from onnx import TensorProto, helper, numpy_helper

from kp_frontend import load_extractor
from kp_frontend.engines.parity import compare
from kp_frontend.errors import InputError
from kp_frontend.extractors.network_input import network_input
from kp_frontend.model_file import ModelMetadata
from kp_training.export import quantize as quantization
from kp_training.export.images import check_images
from kp_training.export.quantize import WEIGHTED, chosen_nodes, quantize

MODELS = Path(__file__).parents[1] / "models"
NETWORKS = {
    "compact": ("kp2d", {"network": "compact"}),
    "superpoint": ("superpoint", {}),
    "silk": ("silk", {"padding": True, "channels": 16}),
}
FLOAT = {"compact": 1, "superpoint": 0, "silk": 0}
"""Convolutions that stay float: compact's, which spreads the reliability over the pixels."""


@pytest.fixture(scope="module", params=NETWORKS)
def source(request, tmp_path_factory):
    """(name, float file, its metadata, inputs to calibrate on)."""
    method, settings = NETWORKS[request.param]
    made = untrained(method, settings)
    path = made.write(tmp_path_factory.mktemp("float") / "model.onnx")
    blobs = [{"image": network_input(image[:128, :160], made.metadata)} for image in check_images(None)]
    return request.param, path, made.metadata, blobs


@pytest.fixture(scope="module", params=["cpu", "tensorrt"])
def quantized(request, source, tmp_path_factory):
    """(name, what it is for, float graph, int8 file)."""
    name, path, metadata, blobs = source
    target = tmp_path_factory.mktemp("int8") / "model.onnx"
    about = ModelMetadata(**{**vars(metadata), "precision": "int8", "quantized_for": request.param})
    with pytest.MonkeyPatch.context() as patch:  # test_ranges.py looks at the ranges
        patch.setattr(quantization, "narrow_ranges", lambda *_: None)
        quantize(path, target, blobs, about)
    return name, request.param, onnx.load(path).graph, target


def _links(graph):
    made = {output: node for node in graph.node for output in node.output}
    return made, {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}


def _layers(graph):
    return [node for node in graph.node if node.op_type in WEIGHTED]


def test_layers_read_int8_weights_with_a_scale_for_each_channel(quantized):
    name, _, original, path = quantized
    graph = onnx.load(path).graph
    made, constant = _links(graph)
    layers = [node for node in _layers(graph) if node.input[1] in made]
    assert len(_layers(original)) - len(layers) == FLOAT[name]
    for node in layers:
        weights, scale, zero = (constant[entry] for entry in made[node.input[1]].input)
        assert weights.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert scale.shape == zero.shape == (weights.shape[0],)
        assert made[node.input[0]].op_type == "DequantizeLinear"


def test_activations_are_as_the_target_wants_them(quantized):
    name, target, _, path = quantized
    graph = onnx.load(path).graph
    made, constant = _links(graph)
    zeros = [constant[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {zero.dtype for zero in zeros} == {np.dtype(np.uint8 if target == "cpu" else np.int8)}
    # Only compact has values below zero: its image is around 0.
    assert any(zero != 0 for zero in zeros) == (target == "cpu" and name == "compact")
    biases = [node.input[2] for node in _layers(graph) if node.input[1] in made and len(node.input) > 2]
    assert {bias in made for bias in biases} == {target == "cpu"}


def test_answers_stay_float_and_no_activation_is_lost(quantized):
    name, _, original, path = quantized
    graph = onnx.load(path).graph
    made, _ = _links(graph)
    counts, before = (Counter(node.op_type for node in entry.node) for entry in (graph, original))
    assert counts["Relu"] == before["Relu"] > 0
    assert all(made[output.name].op_type not in ("QuantizeLinear", "DequantizeLinear") for output in graph.output)
    for node in graph.node:
        if node.op_type in ("Sigmoid", "Softmax", "DepthToSpace", "Relu"):
            assert made[node.input[0]].op_type != "DequantizeLinear", f"{name}: {node.name} reads rounded values"


def test_no_float_is_left_between_two_layers(quantized):
    name, _, _, path = quantized
    graph = onnx.load(path).graph
    made, _ = _links(graph)
    joints = [node for node in graph.node if node.op_type in ("Add", "AveragePool", "MaxPool")]
    assert len(joints) == {"compact": 10, "superpoint": 3, "silk": 0}[name]
    assert {made[entry].op_type for node in joints for entry in node.input} <= {"DequantizeLinear"}


def _graph(nodes, weights):
    constants = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])
    last = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "test", [image], [last], constants)


def test_a_map_that_layers_made_is_an_answer_and_stays_float():
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], name="image of one channel"),
        helper.make_node("Conv", ["a", "deep"], ["b"], name="one channel a group", group=4),
        helper.make_node("Conv", ["b", "answer"], ["c"], name="makes the map"),
        helper.make_node("Resize", ["c"], ["d"], name="enlarges it"),
        helper.make_node("Conv", ["d", "spread"], ["e"], name="spreads it"),
    ]
    weights = {"first": (4, 1, 3, 3), "deep": (4, 1, 3, 3), "answer": (1, 4, 1, 1), "spread": (16, 1, 3, 3)}
    assert chosen_nodes(_graph(nodes, weights)) == {"image of one channel", "one channel a group", "makes the map"}


def test_sums_are_quantised_only_between_layers():
    nodes = [
        helper.make_node("Add", ["image", "image"], ["a"], name="before"),
        helper.make_node("Conv", ["a", "one"], ["b"], name="first"),
        helper.make_node("Relu", ["b"], ["c"], name="activation"),
        helper.make_node("Add", ["c", "c"], ["d"], name="between"),
        helper.make_node("Conv", ["d", "two"], ["e"], name="second"),
        helper.make_node("Add", ["e", "e"], ["f"], name="after"),
    ]
    weights = {"one": (4, 1, 3, 3), "two": (4, 4, 3, 3)}
    assert chosen_nodes(_graph(nodes, weights)) == {"first", "between", "second"}


def test_what_cannot_be_quantised_is_said(source, tmp_path):
    _, path, metadata, _ = source
    with pytest.raises(InputError, match="--calibration"):
        quantize(path, tmp_path / "none.onnx", [], metadata)
    graph = _graph([helper.make_node("Relu", ["image"], ["a"], name="activation")], {})
    plain = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), plain)
    with pytest.raises(InputError, match="export it as fp32"):
        quantize(plain, tmp_path / "none.onnx", [{"image": np.zeros((1, 1, 8, 8), np.float32)}], metadata)


def test_shipped_int8_finds_what_the_shipped_float_model_finds():
    """On photographs that it was not calibrated on, an odd size among them."""
    float_model, int8_model = (load_extractor(str(MODELS / name), top_k=500, backend="onnxruntime", threads=1)
                               for name in ("kp2d_compact.onnx", "kp2d_compact_int8.onnx"))
    for image in (check_images(None)[0], check_images(None)[1][100:331, 50:377]):
        expected, found = float_model.extract(image), int8_model.extract(image)
        agreement = compare((expected.keypoints, expected.descriptors), (found.keypoints, found.descriptors))
        assert agreement.within_pixel > 0.9
        assert agreement.cosine > 0.998
