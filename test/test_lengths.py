"""What of a graph TensorRT 8.6 would read wrongly is written otherwise."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from exported import network_of
from onnx import TensorProto, helper, numpy_helper

from kp_training.export.lengths import spell_out_lengths


@pytest.mark.parametrize(("axes", "keepdims"), [([1], 1), ([-1], 0), ([1, 2], 1), (None, 0)])
def test_a_length_is_what_it_was(axes, keepdims):
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    expected = np.sqrt((values**2).sum(tuple(axes) if axes else None, keepdims=bool(keepdims)))
    initializers = [numpy_helper.from_array(np.array(axes, np.int64), "axes")] if axes else []
    node = helper.make_node("ReduceL2", ["x", *["axes"] * bool(axes)], ["y"], keepdims=keepdims)
    graph = helper.make_graph([node], "length", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, expected.shape)], initializers)
    spell_out_lengths(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Mul", "ReduceSum", "Sqrt"]
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "top_k"), [("kp2d-compact", 50), ("silk", 0)])
def test_an_export_reduces_by_sums_alone(name, top_k, tmp_path):
    graph = onnx.load(network_of(name).write(tmp_path / "model.onnx", top_k)).graph
    assert {node.op_type for node in graph.node if node.op_type.startswith("Reduce")} == {"ReduceSum"}
