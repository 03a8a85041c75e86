"""TensorRT reads and builds what every method exports, by the very code that builds on a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx, which builds without GPU: make setup")

import tensorrt_rtx as trt
from exported import METHODS, network_of
from fake_cuda import FakeCuda, FakeTensorrt
from tiny_models import full_metadata

from kp_frontend.engines import tensorrt
from kp_frontend.engines.base import Request, Unavailable
from kp_frontend.engines.cuda_driver import Driver
from kp_frontend.engines.tensorrt import cache
from kp_frontend.engines.tensorrt.build import build_plan
from kp_frontend.engines.tensorrt.cache import BuildOptions
from kp_frontend.engines.tensorrt.library import Target
from kp_frontend.engines.tensorrt.plan_file import read_plan
from kp_frontend.engines.tensorrt.sizes import choose_sizes
from kp_frontend.errors import InputError
from kp_frontend.model_file import read_metadata
from kp_frontend.resources import find_resource
from kp_training.export.onnx import describe
from kp_training.export.quantize import quantize

NOWHERE = Target("tensorrt_rtx", trt.__version__, "none", "0.0", "0.0", "", "any")
TOP_K = 100


def silent(done, total):
    """Progress that nobody looks at."""


def built(path, size=(0, 0), workspace=0, **changes):
    metadata = replace(read_metadata(path), **changes)
    sizes = choose_sizes(metadata, size)
    return build_plan(trt, path, metadata, sizes, workspace=workspace, timings=None, progress=silent)


@pytest.mark.parametrize("name", METHODS)
def test_a_dense_file_of_32_bits_for_any_size(name, file_of):
    assert len(built(file_of(name))) > 10000


@pytest.mark.parametrize("name", METHODS)
def test_a_sparse_file_of_16_bits_for_one_size(name, file_of):
    path = file_of(name, TOP_K, precision="fp16", input_dtype="uint8")
    assert len(built(path, (240, 320))) > 10000


@pytest.mark.parametrize("name", ["kp2d-compact", "superpoint"])
def test_int8_for_tensorrt(tmp_path, name):
    image = np.random.default_rng(0).random((1, 1, 96, 160), np.float32)
    plain = network_of(name).write(tmp_path / "plain.onnx", TOP_K, precision="int8", quantized_for="tensorrt")
    path, metadata = tmp_path / "int8.onnx", read_metadata(plain)
    quantize(plain, path, [{"image": image}], metadata)
    describe(path, metadata)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in onnx.load(str(path)).graph.node}
    assert len(built(path, (240, 320))) > 10000
    with pytest.raises(Unavailable, match="is quantized for a CPU; for TensorRT: export"):
        built(path, quantized_for="cpu")


def test_an_engine_is_built_once_and_its_file_says_what_it_is(model):
    told = []
    path = cache.build_engine(model, BuildOptions((60, 100)), lambda *done: told.append(done), trt=trt, target=NOWHERE)
    header, plan = read_plan(path)
    assert path.parent == cache.folder()
    assert (header.model, header.recipe.metadata, header.recipe.target) == ("tiny.onnx", full_metadata(), NOWHERE)
    assert header.recipe.sizes.usual == header.recipe.sizes.largest == (64, 112)
    assert len(plan) == header.plan_size > 1000
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == (1000, 1000)
    written = path.stat().st_mtime_ns
    assert cache.build_engine(model, BuildOptions((60, 100)), silent, trt=trt, target=NOWHERE) == path
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-1])
    cache.build_engine(model, BuildOptions((60, 100)), silent, trt=trt, target=NOWHERE)
    assert read_plan(path) == (header, plan) or len(read_plan(path)[1]) > 1000


@pytest.mark.parametrize("options", [
    BuildOptions((64, 64), workspace=64), BuildOptions((64, 128)), BuildOptions((64, 64), (32, 32), (128, 128)),
    BuildOptions(),
])
def test_other_options_are_another_engine(model, options):
    first = cache.build_engine(model, BuildOptions((64, 64)), silent, trt=trt, target=NOWHERE)
    other = cache.build_engine(model, options, silent, trt=trt, target=NOWHERE)
    newer = cache.build_engine(model, options, silent, trt=trt, target=replace(NOWHERE, version="9"))
    assert len({first, other, newer}) == 3
    assert {path for path, _ in cache.entries()} == {first, other, newer}


def test_output_names_the_file(model, tmp_path):
    place = tmp_path / "engines" / "mine.engine"
    assert cache.build_engine(model, BuildOptions((64, 64), output=place), silent, trt=trt, target=NOWHERE) == place
    assert cache.entries() == []
    assert [path.name for path in place.parent.iterdir()] == ["mine.engine"]


def test_kernels_times_are_kept_by_tensorrt_and_gpu(model):
    cache.build_engine(model, BuildOptions((64, 64)), silent, trt=trt, target=NOWHERE)
    kept = cache.folder() / f"tensorrt_rtx-{trt.__version__}-none-sm0.0.timings"
    assert kept.stat().st_size > 0
    kept.write_bytes(b"damaged")
    cache.build_engine(model, BuildOptions((64, 128)), silent, trt=trt, target=NOWHERE)
    assert kept.read_bytes() != b"damaged"


def test_what_tensorrt_cannot_read_is_one_line(model):
    graph = onnx.load(str(model))
    graph.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(graph, str(model))
    with pytest.raises(Unavailable, match=r"tensorrt_rtx .* cannot read tiny\.onnx: .*NoSuchOperator") as caught:
        cache.build_engine(model, BuildOptions((64, 64)), silent, trt=trt, target=NOWHERE)
    assert "\n" not in str(caught.value)
    assert cache.entries() == []


def test_too_many_points_are_one_line(model):
    with pytest.raises(InputError, match="top_k is 4000; a sparse file has 1 to 3840 points"):
        built(model, profile="sparse", top_k=4000)


def test_too_little_memory_says_what_to_do():
    path = find_resource("models", "kp2d_compact.onnx")
    with pytest.raises(Unavailable, match=r"not memory enough to build kp2d_compact\.onnx .*or a larger --workspace"):
        built(path, workspace=16)


def test_a_file_cut_short_is_one_line(model):
    model.write_bytes(model.read_bytes()[:200])
    with pytest.raises(InputError, match="is not an ONNX file"):
        cache.build_engine(model, BuildOptions((64, 64)), silent, trt=trt, target=NOWHERE)


def test_load_builds_where_it_may_and_runs_what_was_built(model, caplog):
    """tensorrt-rtx builds; a fake GPU, whose engine is this model's, runs."""
    cuda = FakeCuda()
    both, driver = FakeTensorrt(cuda), Driver(cuda)
    for name in dir(trt):
        if not hasattr(both, name):
            setattr(both, name, getattr(trt, name))
    both.ILogger = trt.ILogger
    with caplog.at_level("INFO", "kp_frontend"):
        engine = tensorrt.load(Request(model, height=64, width=64), both, driver)
    assert "tiny.onnx: building its TensorRT engine" in caplog.text
    assert "tiny.onnx: engine 100 % built" in caplog.text
    image = np.random.default_rng(0).random((1, 1, 64, 64), np.float32)
    np.testing.assert_array_equal(engine.run(image)["scores"], image)
    caplog.clear()
    tensorrt.load(Request(model, height=64, width=64), both, driver)
    assert "building" not in caplog.text
