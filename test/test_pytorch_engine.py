"""The pytorch engine: every operator and every method's files beside other implementations, sizes, errors."""

from __future__ import annotations

import subprocess
import sys
import weakref
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime as library
import torch
from exported import METHODS, network_of
from onnx import TensorProto, helper, numpy_helper
from tiny_models import full_metadata, full_model

from kp_frontend.engines import onnxruntime
from kp_frontend.engines.base import EngineLost, Request, Unavailable
from kp_frontend.engines.parity import compare, found_in, sample_inputs
from kp_frontend.engines.pytorch import engine as engine_module
from kp_frontend.engines.pytorch import load
from kp_frontend.engines.pytorch.graph import Graph, Node, plan, read_graph, run
from kp_frontend.engines.pytorch.operators import OPERATORS, Operator
from kp_frontend.errors import InputError
from kp_training.export.onnx import describe

TOP_K = 100
RNG = np.random.default_rng(0)
MAP = RNG.standard_normal((1, 8, 6, 10)).astype(np.float32)
GRID = RNG.uniform(-1.2, 1.2, (1, 3, 5, 2)).astype(np.float32)
EIGHT = RNG.random(8).astype(np.float32) + 0.5
SHORT = np.array([[3, -1, 2]], np.int64)


def ints(*values):
    return np.array(values, np.int64)


# Operator, inputs, attributes: what the exporters write, and the corners of it that PyTorch does otherwise.
CASES = [
    ("Conv", [MAP, RNG.random((4, 8, 3, 3)).astype(np.float32), EIGHT[:4]], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("Conv", [MAP, RNG.random((8, 1, 3, 3)).astype(np.float32)], {"pads": [0, 1, 2, 1], "group": 8}),
    ("MaxPool", [MAP - 5], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ("MaxPool", [MAP - 5], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    ("MaxPool", [MAP], {"kernel_shape": [4, 4], "strides": [4, 4], "ceil_mode": 1}),
    ("AveragePool", [MAP], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [MAP], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("BatchNormalization", [MAP, EIGHT, EIGHT, EIGHT, EIGHT], {"epsilon": 1e-3}),
    ("InstanceNormalization", [MAP, EIGHT, EIGHT], {"epsilon": 1e-3}),
    ("PRelu", [MAP, EIGHT[:, None, None]], {}), ("LeakyRelu", [MAP], {"alpha": 0.2}), ("Elu", [MAP], {}),
    ("Softplus", [MAP], {}), ("Softmax", [MAP], {"axis": 1}),
    ("Resize", [MAP, None, np.array([1, 1, 2, 4], np.float32)], {"mode": "linear"}),
    ("Resize", [MAP, None, None, ints(1, 8, 12, 40)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", [MAP, None, np.array([1, 1, 2, 2], np.float32)],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("GridSample", [MAP, GRID], {"align_corners": 1, "padding_mode": "border"}), ("GridSample", [MAP, GRID], {}),
    ("DepthToSpace", [MAP], {"blocksize": 2, "mode": "CRD"}), ("DepthToSpace", [MAP], {"blocksize": 2}),
    ("SpaceToDepth", [MAP], {"blocksize": 2}),
    ("Slice", [MAP, ints(-1, 5), ints(-(1 << 62), 0), ints(1, 2), ints(-1, -2)], {}),
    ("Slice", [MAP, ints(1, -3), ints(1 << 62, -1), ints(-1, 2), ints(2, 1)], {}),
    ("Slice", [MAP, ints(4), ints(2)], {}), ("Gather", [MAP, SHORT], {"axis": 1}),
    ("Gather", [MAP, np.array(-1)], {"axis": 3}),
    ("GatherElements", [MAP[0, 0, :1], SHORT], {"axis": 1}),
    ("ReduceL2", [MAP, ints(1)], {}), ("ReduceSum", [MAP], {}), ("ReduceMax", [MAP, ints(-1, 2)], {"keepdims": 0}),
    ("ReduceSum", [MAP], {"noop_with_empty_axes": 1}), ("ReduceMean", [MAP, ints(2, 3)], {}),
    ("TopK", [MAP, ints(3)], {}), ("TopK", [MAP, ints(2)], {"axis": 1, "largest": 0}),
    ("ArgMax", [MAP], {"axis": 2}), ("ArgMax", [MAP], {"axis": -1, "keepdims": 0}),
    ("Split", [MAP, ints(1, 5, 2)], {"axis": 1}), ("Split", [MAP], {"axis": 3, "num_outputs": 3}),
    ("Squeeze", [MAP, ints(0)], {}), ("Unsqueeze", [MAP, ints(0, -1)], {}), ("Reshape", [MAP, ints(0, -1)], {}),
    ("Expand", [MAP[:, :1], ints(2, 1, 6, 10)], {}), ("Flatten", [MAP], {"axis": 2}), ("Transpose", [MAP], {}),
    ("Pad", [MAP, ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(7)], {}), ("Pad", [MAP, ints(1, 2), None, ints(-1)], {}),
    ("Pad", [MAP, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    ("Pad", [MAP, ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    ("Clip", [MAP, np.float32(-0.5)], {}), ("Clip", [MAP, None, np.float32(0.5)], {}),
    ("Div", [ints(-7, 7), ints(2, 2)], {}), ("Mod", [ints(-7, 7), ints(3, -3)], {}), ("Div", [MAP, MAP + 9], {}),
    ("Where", [MAP > 0, MAP, np.float32(0)], {}), ("And", [MAP > 0, MAP < 1], {}), ("MatMul", [MAP, MAP[0, 0].T], {}),
    ("Cast", [MAP], {"to": TensorProto.INT64}), ("Cast", [MAP], {"to": TensorProto.FLOAT16}),
    ("QuantizeLinear", [MAP, np.float32(0.01), np.uint8(120)], {}),
    ("QuantizeLinear", [MAP, EIGHT / 50, np.zeros(8, np.int8)], {"axis": 1}),
    ("DequantizeLinear", [(MAP * 40).astype(np.int8), EIGHT, np.zeros(8, np.int8)], {"axis": 1}),
    ("DequantizeLinear", [ints(9, -9).astype(np.int32), EIGHT[:2]], {"axis": 0}),
    ("Shape", [MAP], {"start": 1}),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)])
def test_an_operator_does_what_onnxruntime_does(case):
    kind, inputs, attributes = case
    names = ["" if values is None else f"in{index}" for index, values in enumerate(inputs)]
    given = {name: np.asarray(values) for name, values in zip(names, inputs) if name}
    model = graph_of(kind, names, given, attributes)
    session = library.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, given)
    data = {name: given[name] for name in names[:1]}  # the others are constants, as in our files
    model = graph_of(kind, names, given, attributes, constants=names[1:])
    graph = read_graph(model, half=True)
    values = {name: torch.from_numpy(value) for name, value in data.items()}
    calls = plan(graph, values, lambda name, value: value)
    if kind == "Shape":  # of sizes alone: nothing is left to do
        assert not calls
        return
    found = run(calls, values)
    for name, wanted in zip(graph.outputs, expected):
        assert found[name].numpy().dtype == wanted.dtype
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert set(found) == {*graph.outputs}


def graph_of(kind, names, given, attributes, constants=()):
    outputs = [f"out{index}" for index in range({"TopK": 2, "Split": 3}.get(kind, 1))]
    inputs = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(given[name].dtype), None)
              for name in names if name and name not in constants]
    graph = helper.make_graph(
        [helper.make_node(kind, names, outputs, **attributes)], "one", inputs,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(given[name], name) for name in constants if name],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_what_depends_on_sizes_alone_is_no_call():
    """Half the height of the image, through Shape, Gather, Div and Concat, crops it: one Slice is left."""
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]), helper.make_node("Gather", ["shape", "two"], ["height"]),
        helper.make_node("Div", ["height", "divisor"], ["half"]),
        helper.make_node("Slice", ["image", "zero", "half", "divisor"], ["top"]),
    ]
    constants = {"two": ints(2), "divisor": ints(2), "zero": ints(0)}
    graph = helper.make_graph(
        nodes, "crop", [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "h", "w"])],
        [helper.make_tensor_value_info("top", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    read = read_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), half=False)
    for height in (6, 10):
        image = torch.rand(1, 1, height, 4)
        calls = plan(read, {"image": image}, lambda name, value: value)
        assert [call.node.operator for call in calls] == [OPERATORS["Slice"]]
        assert torch.equal(run(calls, {"image": image})["top"], image[:, :, : height // 2])


def both(path):
    return load(Request(path, threads=1)), onnxruntime.load(Request(path, threads=1))


@pytest.mark.parametrize("name", METHODS)
def test_a_dense_file_gives_the_maps_that_onnxruntime_gives(name, file_of):
    ours, theirs = both(file_of(name))
    assert ours.outputs == theirs.outputs
    assert ours.metadata == theirs.metadata == network_of(name).metadata
    for height, width in ((64, 96), (96, 64)):
        inputs = sample_inputs(ours.metadata, height, width)
        found, expected = ours.run(**inputs), theirs.run(**inputs)
        for name in ours.outputs:
            assert found[name].shape == expected[name].shape
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4 * np.abs(expected[name]).max())


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_half_file_gives_the_features_that_onnxruntime_gives(name, file_of):
    ours, theirs = both(file_of(name, TOP_K, precision="fp16", input_dtype="uint8"))
    for height, width in ((64, 96), (96, 64)):
        inputs = sample_inputs(ours.metadata, height, width)
        found, expected = (found_in(engine.run(**inputs), inputs, engine.metadata) for engine in (ours, theirs))
        assert len(found[0]) == len(expected[0])
        agreement = compare(expected, found)
        assert agreement.within_pixel > 0.8  # scores that are almost equal may change places with those left out
        assert agreement.cosine > 0.99


def test_an_int8_file_is_computed_as_its_scales_say(tmp_path):
    quantization = pytest.importorskip("kp_training.export.quantize")
    network = network_of("kp2d-compact")
    metadata = replace(network.metadata, precision="int8", quantized_for="cpu")
    image = sample_inputs(metadata, 64, 96)["image"]
    quantization.quantize(network.write(tmp_path / "plain.onnx"), tmp_path / "int8.onnx", [{"image": image}], metadata)
    describe(tmp_path / "int8.onnx", metadata)
    ours, theirs = both(tmp_path / "int8.onnx")
    found, expected = ours.run(image), theirs.run(image)
    for name in found:
        assert np.abs(found[name] - expected[name]).mean() < 0.1 * expected[name].std()


@pytest.fixture
def tiny(tmp_path):
    return full_model(tmp_path / "tiny.onnx", full_metadata())


def test_sizes_come_and_go(tiny):
    engine = load(Request(tiny))
    assert engine.backend == "pytorch (CPU)"
    for height, width in ((16, 32), (48, 16), (16, 32), (16, 32)):
        image = np.random.default_rng(height).random((1, 1, height, width), np.float32)
        image.setflags(write=False)  # as a view of a message
        maps = engine.run(image)
        np.testing.assert_allclose(maps["scores"], image)
        assert maps["descriptors"].shape == (1, 4, height // 8, width // 8)


def test_no_compiler_is_imported_for_the_first_run():
    """It would take seconds, each time that a node starts."""
    code = ("import sys; from kp_frontend.engines import open_engine; from kp_frontend.resources import find_resource; "
            "open_engine(find_resource('models', 'kp2d_compact.onnx'), 'pytorch', 1, height=64, width=64); "
            "sys.exit('torch' not in sys.modules or 'torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_keeps_no_values_that_nobody_needs():
    """The first call holds as much memory as all others."""
    alive = weakref.WeakSet()

    def watched(data):
        result = data + 1
        alive.add(result)
        most.append(len(alive))
        return result

    most = []
    nodes = [Node(Operator(watched), (f"v{k}",), (f"v{k + 1}",), {}) for k in range(5)]
    graph = Graph(tuple(nodes), {}, ("v0",), ("v5",))
    calls = plan(graph, {"v0": torch.zeros(2)}, lambda name, value: value)
    assert max(most) == 2  # what goes in and what comes out
    assert torch.equal(run(calls, {"v0": torch.zeros(2)})["v5"], torch.full((2,), 5.0))


class Recorder:
    """In the place of a CUDA graph: runs the network, and counts what was captured."""

    made = 0

    def __init__(self, network, inputs):
        type(self).made += 1
        self.network = network

    def run(self, inputs):
        return [values.numpy() for values in self.network({name: torch.from_numpy(v) for name, v in inputs.items()})]


@pytest.fixture
def on_gpu(tiny, monkeypatch):
    """An engine that believes to be on a GPU."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(engine_module, "Capture", Recorder)
    monkeypatch.setattr(Recorder, "made", 0)
    engine = load(Request(tiny))
    engine._device = torch.device("cuda")
    return engine


def test_a_size_that_comes_back_is_captured(on_gpu, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "to", lambda values, *_, **__: values)
    small, large = (np.zeros((1, 1, size, size), np.float32) for size in (16, 32))
    made = []
    for image in (small, small, small, large, small, small, large, large):
        on_gpu.run(image)
        made.append(Recorder.made)
    assert made == [0, 1, 1, 1, 1, 2, 2, 3]


def test_what_cannot_be_captured_runs_all_the_same(on_gpu, monkeypatch, caplog):
    class Refuses(Recorder):
        def __init__(self, network, inputs):
            super().__init__(network, inputs)
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.Tensor, "to", lambda values, *_, **__: values)
    monkeypatch.setattr(engine_module, "Capture", Refuses)
    image = np.random.default_rng(0).random((1, 1, 16, 16), np.float32)
    for _ in range(4):
        np.testing.assert_array_equal(on_gpu.run(image)["scores"], image)
    assert Refuses.made == 1
    assert "runs without CUDA graph (operation not permitted when stream is capturing)" in caplog.text


@pytest.mark.parametrize(("error", "said"), [
    (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "no GPU memory is left"),
    (RuntimeError("CUDA error: device lost\nCompile with TORCH_USE_CUDA_DSA"), r"\(CUDA error: device lost\); look at"),
])
def test_a_gpu_that_fails_says_so(on_gpu, monkeypatch, error, said):
    def fail(inputs):
        raise error

    monkeypatch.setattr(on_gpu, "_run", fail)
    with pytest.raises(EngineLost, match=said):
        on_gpu.run(np.zeros((1, 1, 16, 16), np.float32))
    with pytest.raises(Unavailable, match=said):
        on_gpu.warm_up(16, 16)


def test_what_is_not_known_is_named(tiny):
    def changed(**change):
        model = onnx.load(str(tiny))
        for name, value in change.items():
            setattr(model.opset_import[0] if name == "version" else model.graph.node[0], name, value)
        onnx.save(model, str(tiny.with_name("changed.onnx")))
        return Request(tiny.with_name("changed.onnx"))

    with pytest.raises(Unavailable, match="operators not known: Multinomial; take another backend"):
        load(changed(op_type="Multinomial"))
    with pytest.raises(Unavailable, match="operators not known: Relu"):
        load(changed(op_type="Relu", domain="com.example"))
    with pytest.raises(Unavailable, match="opset 11 is not known, expected 13 to 19"):
        load(changed(version=11))


@pytest.mark.parametrize("package", ["torch", "onnx"])
def test_what_is_missing_is_named(tiny, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Unavailable, match=rf"{package} is not installed: pip install 'kp_frontend\[pytorch\]'"):
        load(Request(tiny))


@pytest.mark.parametrize("content", [b"", b"not a model at all", None])
def test_damaged_files_are_refused_in_one_line(tiny, content):
    tiny.write_bytes(tiny.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError) as caught:
        load(Request(tiny))
    assert not isinstance(caught.value, Unavailable)
    assert "\n" not in str(caught.value)
