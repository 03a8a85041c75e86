"""Every engine of an NVIDIA GPU beside onnxruntime on the CPU, for every kind of file. `make gpu-check` runs these."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import torch
from exported import trained, untrained
from tiny_models import full_metadata, full_model

from kp_frontend.engines import EngineLost, Request, Unavailable, choice, onnxruntime, open_engine
from kp_frontend.engines.cuda_driver import open_driver
from kp_frontend.engines.parity import agreement_with, compare, found_in, sample_inputs
from kp_training.__main__ import main
from kp_training.export.onnx import describe

try:
    open_driver()
    MISSING = ""
except Unavailable as error:
    MISSING = str(error)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

ROOT = Path(__file__).resolve().parents[1]
TOP_K = 200
SIZES = ((96, 128), (128, 96))
BACKENDS = ("tensorrt", "cuda", "pytorch")
# Name → network; what of its files is compared is maps, or, where a file is sparse, features.
NETWORKS = {
    "compact": partial(trained, ROOT / "models" / "kp2d_compact.ckpt"),
    "kp2d": partial(untrained, "kp2d", {}),
    "superpoint": partial(untrained, "superpoint", {}),
    "silk": partial(untrained, "silk", {"channels": 16}),
    "pos_feat": partial(untrained, "pos_feat", {}),
    "sedm": partial(untrained, "sedm", {}),
    "residual": partial(untrained, "residual", {}),
}
# How far a map may be from that of onnxruntime, as a share of its largest value: means that TF32 is off for fp32.
BOUNDS = {"fp32": 1e-3, "fp16": 0.05}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, tmp_path_factory):
    """The name of a backend that can run here; what cannot run the smallest network is skipped."""
    tiny = full_model(tmp_path_factory.mktemp("tiny") / "tiny.onnx", full_metadata())
    try:
        engine = load(request.param, tiny, 32, 32)
    except Unavailable as error:
        pytest.skip(f"{request.param}: {error}")
    if "(CPU)" in engine.backend:
        pytest.skip(f"{request.param}: the installed one runs on the CPU only")
    return request.param


def load(backend, path, height=0, width=0):
    """The engine itself, without the choice, the comparison and the spare of `open_engine`."""
    module = choice.importlib.import_module(choice.BACKENDS[backend])
    return module.load(Request(path, height=height, width=width, build=True))


@cache
def network(name):
    return NETWORKS[name]()


def expected_of(path, inputs):
    engine = onnxruntime.load(Request(path))
    return {name: values.copy() for name, values in engine.run(**inputs).items()}, engine.metadata


def check_maps(engine, path, height, width, bound):
    inputs = sample_inputs(engine.metadata, height, width)
    expected, _ = expected_of(path, inputs)
    for run in range(3):  # the first, the one that is recorded, and a replay
        found = engine.run(**inputs)
        for name, values in expected.items():
            assert found[name].dtype == np.float32
            worst = np.abs(found[name] - values).max() / np.abs(values).max()
            assert worst < bound, f"{name}, run {run}, {width}×{height}: {worst:.2g} of the largest value"


def check_features(engine, path, height, width):
    inputs = sample_inputs(engine.metadata, height, width)
    outputs, metadata = expected_of(path, inputs)
    expected = found_in(outputs, inputs, metadata)
    for run in range(3):
        agreement = agreement_with(expected, engine.run(**inputs), inputs, metadata)
        assert agreement.good, f"run {run}, {width}×{height}: {agreement}"


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_dense_files_give_the_maps_of_onnxruntime(backend, name, precision, tmp_path):
    path = network(name).write(tmp_path / "dense.onnx", precision=precision)
    for height, width in SIZES:
        check_maps(load(backend, path, height, width), path, height, width, BOUNDS[precision])


@pytest.mark.parametrize(("name", "precision"), [
    ("compact", "fp32"), ("compact", "fp16"), ("residual", "fp32"), ("residual", "fp16"),
    ("superpoint", "fp32"), ("kp2d", "fp32"),  # untrained: in 16 bits, scores that are almost equal change places
])
def test_sparse_files_of_bytes_give_the_features_of_onnxruntime(backend, name, precision, tmp_path):
    path = network(name).write(tmp_path / "sparse.onnx", TOP_K, precision=precision, input_dtype="uint8")
    check_features(load(backend, path, 240, 320), path, 240, 320)


def test_int8_files_give_the_features_of_onnxruntime(backend, tmp_path):
    from kp_training.export.quantize import quantize

    target = "tensorrt" if backend == "tensorrt" else "cpu"
    plain = network("compact").write(tmp_path / "plain.onnx", precision="int8", quantized_for=target)
    metadata = onnxruntime.load(Request(plain)).metadata
    path = tmp_path / "int8.onnx"
    quantize(plain, path, [sample_inputs(metadata, 240, 320)], metadata)
    describe(path, metadata)
    check_features(load(backend, path, 240, 320), path, 240, 320)


def test_one_engine_for_many_sizes(backend, tmp_path):
    path = network("compact").write(tmp_path / "dense.onnx")
    engine = load(backend, path)
    for height, width in (*SIZES, (480, 640), *SIZES):
        check_maps(engine, path, height, width, BOUNDS["fp32"])


def test_what_a_run_gave_holds_until_the_next(backend, tmp_path):
    path = network("compact").write(tmp_path / "dense.onnx")
    engine, inputs = load(backend, path, 96, 128), sample_inputs(network("compact").metadata, 96, 128)
    for _ in range(3):
        outputs = engine.run(**inputs)
        kept = {name: values.copy() for name, values in outputs.items()}
        load(backend, path, 96, 128)  # another engine takes memory, and leaves these outputs alone
        for name, values in outputs.items():
            np.testing.assert_array_equal(values, kept[name])


def test_the_choice_takes_a_gpu(backend, tmp_path):
    path = network("compact").write(tmp_path / "sparse.onnx", TOP_K)
    engine = open_engine(path, backend, height=240, width=320)
    assert engine.choice.agreement.good
    assert "(CPU)" not in engine.backend
    if backend != "pytorch":  # the last of all, after the engines of the CPU
        assert "(CPU)" not in open_engine(path, "auto", height=240, width=320).backend


@pytest.fixture
def little_memory():
    """PyTorch may take 256 MB of the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("the installed PyTorch has no CUDA")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((256 << 20) / torch.cuda.get_device_properties(0).total_memory)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_gpu_without_memory_is_lost_and_the_cpu_takes_over(little_memory, tmp_path):
    path = network("superpoint").write(tmp_path / "dense.onnx")
    large = sample_inputs(network("superpoint").metadata, 1536, 2048)  # 800 MB after the first layer
    with pytest.raises(EngineLost, match="no GPU memory is left"):
        load("pytorch", path).run(**large)
    with pytest.raises(Unavailable, match="no GPU memory is left"):
        load("pytorch", path, 1536, 2048)
    engine = open_engine(path, "pytorch", height=240, width=320)
    assert engine.backend == "pytorch (CUDA)"
    assert engine.run(**large)["scores"].shape == (1, 1, 1536, 2048)
    assert engine.fallbacks == 1
    assert "(CPU)" in engine.backend


@pytest.fixture
def tensorrt(tmp_path, monkeypatch):
    """An empty cache of engines; skipped without TensorRT."""
    from kp_frontend.engines.tensorrt.library import import_library

    try:
        import_library()
    except Unavailable as error:
        pytest.skip(str(error))
    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path / "cache"))


def test_an_engine_that_the_command_built_runs(tensorrt, tmp_path, capsys):
    path = network("compact").write(tmp_path / "sparse.onnx", TOP_K, precision="fp16", input_dtype="uint8")
    with pytest.raises(Unavailable, match="no engine yet"):
        load_cached(path)
    assert main(["build_engine", str(path), "--height", "240", "--width", "320"]) == 0
    check_features(load_cached(path), path, 240, 320)
    assert main(["build_engine", "list"]) == 0
    assert "sparse.onnx" in capsys.readouterr().out
    alone = tmp_path / "alone.engine"
    assert main(["build_engine", str(path), "--height", "240", "--width", "320", "--output", str(alone)]) == 0
    check_features(open_engine(alone, "tensorrt"), path, 240, 320)


def load_cached(path):
    from kp_frontend.engines import tensorrt

    return tensorrt.load(Request(path, height=240, width=320, build=False))


def test_a_node_builds_beside_its_work_and_swaps_without_losing_a_frame(tensorrt, tmp_path):
    pytest.importorskip("rclpy")
    from node_harness import Harness

    from kp_frontend.nodes.frontend_node import FrontendNode

    path = network("compact").write(tmp_path / "sparse.onnx", TOP_K, precision="fp16", input_dtype="uint8")
    image = sample_inputs(onnxruntime.load(Request(path)).metadata, 240, 320)["image"][0, 0]
    node = partial(FrontendNode, "extractor", odometry=False)
    with Harness(node, features=str(path), backend="auto") as harness:
        first, *_ = harness.features(harness.send(image))
        assert not harness.status()["backend"].startswith("tensorrt")
        for _ in range(6000):  # every frame is answered, before, at and after the swap
            last, *_ = harness.features(harness.send(image))
            if harness.status().get("engine_build") == "done":
                break
        last, *_ = harness.features(harness.send(image))
        assert harness.status()["backend"].startswith("tensorrt")
        assert int(harness.status().get("dropped", 0)) == 0
        assert not harness.last_error()
    assert compare((first.keypoints, first.descriptors), (last.keypoints, last.descriptors)).good
