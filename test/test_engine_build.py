"""A node's way to TensorRT: another engine runs at once, and gives way between two frames."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from fake_backends import install, refuse
from fake_cuda import LAUNCH_FAILED, FakeCuda, FakeTensorrt
from tiny_models import full_metadata, full_model
from waiting import WAIT, until

from kp_frontend.engines import choice, open_engine, tensorrt
from kp_frontend.engines.base import Unavailable
from kp_frontend.engines.cuda_driver import Driver, open_driver
from kp_frontend.engines.tensorrt import cache, library
from kp_frontend.isolated import Ended, call_isolated
from kp_frontend.nodes import engine_build
from kp_frontend.nodes.engine_build import first_backend, watch_engine


class Said:
    """Diagnostics."""

    def __init__(self):
        self.facts, self.errors, self.states = {}, [], []

    def fact(self, **facts):
        self.facts.update(facts)
        self.states.append(facts.get("engine_build"))

    def error(self, text):
        self.errors.append(text)


class Gpu:
    """TensorRT on a fake GPU, whose engine gives what `full_model` gives; `go` lets a build end."""

    def __init__(self, monkeypatch):
        self.cuda, self.go, self.sizes = FakeCuda(), threading.Event(), []
        self.trt, self.driver = FakeTensorrt(self.cuda), Driver(self.cuda)
        self.fails: Exception | None = None
        load = tensorrt.load
        monkeypatch.setattr(tensorrt, "load", lambda request: load(request, self.trt, self.driver))
        monkeypatch.setattr(engine_build, "open_driver", lambda: self.driver)
        monkeypatch.setattr(engine_build, "import_library", lambda: self.trt)
        monkeypatch.setattr(engine_build, "call_isolated", self.build)
        monkeypatch.setattr(cache, "build_plan", lambda *arguments, **options: b"plan")
        monkeypatch.setattr(choice, "agreement_with", lambda *found: SimpleNamespace(good=True))
        monkeypatch.setattr(choice, "found_in", lambda *outputs: "features")

    def build(self, function, path, options, *, progress, stop):
        self.sizes.append(options.size)
        progress(430, 1000)
        assert self.go.wait(WAIT)
        if self.fails:
            raise self.fails
        if stop.is_set():
            raise Ended("build_engine", -15)
        return function(path, options, progress, trt=self.trt, target=library.target_of(self.trt, self.driver))


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


def opened(model):
    said, engine = Said(), open_engine(model, "onnxruntime", threads=1)
    return engine, said, watch_engine(engine, "auto", said)


def check(engine, height, width):
    image = np.random.default_rng(height).random((1, 1, height, width), np.float32)
    np.testing.assert_array_equal(engine.run(image)["scores"], image)


def test_frames_go_on_while_it_builds_and_after_the_swap(model, gpu):
    engine, said, build = opened(model)
    for _ in range(3):
        build.consider(60, 90)
        check(engine, 64, 96)
    until(lambda: said.facts.get("engine_build") == "43 %")
    assert engine.backend == "onnxruntime (CPU)"
    gpu.go.set()
    end = time.monotonic() + WAIT
    while engine.backend != "tensorrt (Fake GPU)":
        assert time.monotonic() < end, said.errors
        build.consider(60, 90)
        check(engine, 64, 96)
    until(lambda: said.facts["engine_build"] == "done")
    check(engine, 64, 96)
    assert gpu.sizes == [(60, 90)]
    assert not said.errors
    build.close()


def test_what_is_built_already_is_taken_at_once(model, gpu):
    gpu.go.set()
    for _ in range(2):
        engine, said, build = opened(model)
        build.consider(64, 96)
        until(lambda said=said: said.facts.get("engine_build") == "done")
        assert engine.backend == "tensorrt (Fake GPU)"
        build.close()
    assert len(gpu.sizes) == 1


def test_another_size_is_run_at_once_and_built_for(model, gpu, monkeypatch):
    for name in ("cuda", "openvino", "pytorch"):
        install(monkeypatch, name, refuse("not on this machine"))
    gpu.go.set()
    engine, said, build = opened(model)
    build.consider(64, 96)
    until(lambda: said.facts.get("engine_build") == "done")
    gpu.go.clear()
    build.consider(32, 48)
    assert engine.backend == "onnxruntime (CPU)"
    check(engine, 32, 48)
    until(lambda: len(gpu.sizes) == 2)
    gpu.go.set()
    until(lambda: engine.backend == "tensorrt (Fake GPU)")
    check(engine, 32, 48)
    build.close()


def test_sizes_whose_engines_are_built_come_and_go(model, gpu):
    """Each is run by an engine of one size, which takes no other."""
    gpu.go.set()
    engine, _, build = opened(model)
    for size in ((64, 96), (32, 48)):
        build.consider(*size)
        until(lambda size=size: engine.takes(*size) and engine.backend == "tensorrt (Fake GPU)")
    for height, width in ((64, 96), (32, 48), (16, 48), (64, 96)):
        build.consider(height, width)
        check(engine, height, width)
    build.close()


def test_an_engine_that_was_built_for_other_sizes_gives_way(model, gpu, monkeypatch):
    sizes = {"smallest": (32, 32), "largest": (64, 64)}
    cache.build_engine(model, cache.BuildOptions(**sizes), lambda *done: None, trt=gpu.trt,
                       target=library.target_of(gpu.trt, gpu.driver))
    for name in ("cuda", "openvino", "pytorch"):
        install(monkeypatch, name, refuse("not here"))
    said, engine = Said(), open_engine(model, threads=1, height=48, width=48)
    build = watch_engine(engine, "auto", said)
    for height, width in ((48, 48), (32, 64)):
        build.consider(height, width)
        check(engine, height, width)
        assert engine.backend == "tensorrt (Fake GPU)"
    assert not gpu.sizes
    build.consider(96, 64)
    assert engine.backend == "onnxruntime (CPU)"
    check(engine, 96, 64)
    until(lambda: gpu.sizes == [(96, 64)])
    gpu.go.set()
    until(lambda: engine.backend == "tensorrt (Fake GPU)")
    check(engine, 96, 64)
    build.close()


def test_a_gpu_that_is_lost_before_the_build_is_said(model, gpu):
    engine, said, build = opened(model)
    gpu.cuda.fails["cuCtxSetCurrent"] = LAUNCH_FAILED
    build.consider(64, 96)
    until(lambda: said.facts.get("engine_build", "").startswith("failed: cuCtxSetCurrent"))
    check(engine, 64, 96)


def test_a_model_that_changed_meanwhile_is_not_taken_and_said(model, gpu):
    engine, said, build = opened(model)
    build.consider(64, 96)
    until(lambda: gpu.sizes)
    full_model(model, full_metadata(data="trained anew"))
    gpu.go.set()
    until(lambda: said.facts.get("engine_build", "").startswith("failed"))
    assert "is another model" in said.errors[0]
    assert engine.backend == "onnxruntime (CPU)"


def test_an_engine_for_a_size_that_is_gone_is_not_taken(model, gpu):
    engine, said, build = opened(model)
    swaps = []
    engine.changed = lambda changed: swaps.append(changed.backend)
    build.consider(64, 96)
    until(lambda: gpu.sizes)
    build.consider(32, 48)
    gpu.go.set()
    until(lambda: said.facts["engine_build"] == "done")
    assert gpu.sizes == [(64, 96), (32, 48)]
    assert swaps == ["tensorrt (Fake GPU)"]
    check(engine, 32, 48)
    build.close()


@pytest.mark.parametrize("error", [Unavailable("TensorRT cannot read tiny.onnx"), Ended("build_engine", -9),
                                   TypeError("of a library")])
def test_a_build_that_fails_is_said_once_and_the_node_goes_on(model, gpu, error):
    gpu.fails = error
    gpu.go.set()
    engine, said, build = opened(model)
    build.consider(64, 96)
    until(lambda: said.facts.get("engine_build", "").startswith("failed"))
    for _ in range(3):
        build.consider(64, 96)
        check(engine, 64, 96)
    assert said.errors == [f"TensorRT engine of tiny.onnx not built: {error}"]
    assert len(gpu.sizes) == 1
    assert engine.backend == "onnxruntime (CPU)"


def test_an_engine_that_disagrees_is_not_taken(model, gpu, monkeypatch):
    gpu.go.set()
    engine, said, build = opened(model)
    monkeypatch.setattr(choice, "agreement_with", lambda *found: SimpleNamespace(good=False))
    build.consider(64, 96)
    until(lambda: said.facts.get("engine_build", "").startswith("failed"))
    assert "finds something else than onnxruntime" in said.errors[0]
    assert engine.backend == "onnxruntime (CPU)"


def test_closing_ends_a_build_without_an_error(model, gpu):
    engine, said, build = opened(model)
    build.consider(64, 96)
    until(lambda: gpu.sizes)
    threading.Timer(0.05, gpu.go.set).start()
    build.close()
    assert not said.errors
    assert engine.backend == "onnxruntime (CPU)"


def test_after_a_lost_gpu_nothing_is_built(model, gpu):
    engine, said, build = opened(model)
    engine.fallbacks = 1
    build.consider(64, 96)
    assert not gpu.sizes
    assert not said.facts


def test_what_was_built_while_the_gpu_was_lost_is_not_taken(model, gpu):
    engine, said, build = opened(model)
    build.consider(64, 96)
    until(lambda: gpu.sizes)
    engine.fallbacks = 1
    gpu.go.set()
    until(lambda: said.facts.get("engine_build", "").startswith("given up"))
    assert engine.backend == "onnxruntime (CPU)"


def test_without_gpu_it_is_said_and_no_error(model, monkeypatch):
    def missing():
        raise Unavailable("no NVIDIA GPU here")

    monkeypatch.setattr(engine_build, "open_driver", missing)
    _, said, build = opened(model)
    assert build is None
    assert said.facts["engine_build"] == "none: no NVIDIA GPU here"
    assert not said.errors
    with pytest.raises(Unavailable, match="kp2d_compact:top_k=500 cannot be run by tensorrt: no NVIDIA GPU"):
        first_backend("kp2d_compact:top_k=500", "tensorrt")
    assert first_backend("orb", "tensorrt") == "tensorrt"
    assert first_backend("kp2d_compact", "openvino") == "openvino"


def test_tensorrt_by_name_is_not_waited_for(gpu):
    assert first_backend("kp2d_compact", "tensorrt") == "auto"


def test_only_an_onnx_file_whose_backend_is_open_is_watched(model, gpu):
    engine = open_engine(model, "onnxruntime", threads=1)
    assert watch_engine(None, "auto", Said()) is None
    assert watch_engine(engine, "onnxruntime", Said()) is None
    engine.request = SimpleNamespace(path=model.with_suffix(".engine"), threads=1)
    assert watch_engine(engine, "auto", Said()) is None


def test_a_process_that_is_stopped_ends(tmp_path, monkeypatch):
    (tmp_path / "sleeping_of_test.py").write_text("import time\n\ndef sleep(progress):\n    progress(1, 2)\n"
                                                  f"    time.sleep({WAIT})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    import sleeping_of_test

    stop, began = threading.Event(), time.monotonic()
    with pytest.raises(Ended):
        call_isolated(sleeping_of_test.sleep, progress=lambda *done: stop.set(), stop=stop)
    assert time.monotonic() - began < WAIT


def test_the_builder_runs_in_its_process_and_its_error_comes_back(model):
    """What a node calls, for real."""
    try:
        open_driver()
        library.import_library()
    except Unavailable:
        with pytest.raises(Unavailable, match=r"GPU|TensorRT"):
            call_isolated(cache.build_engine, model, cache.BuildOptions((64, 96)), progress=lambda *done: None)
    else:
        pytest.skip("TensorRT runs here; test_gpu.py builds with it")
