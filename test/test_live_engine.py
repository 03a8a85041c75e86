"""An engine that is lost or replaced while it runs."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from functools import partial

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from fake_backends import FakeEngine, only, refuse
from tiny_models import full_metadata, full_model

from kp_frontend.engines import Request, open_engine
from kp_frontend.engines.live import backend_of
from kp_frontend.errors import InputError
from kp_frontend.extractors import load_extractor

IMAGE = np.random.default_rng(0).random((1, 1, 32, 48), np.float32)


@pytest.fixture
def tiny(tmp_path):
    return full_model(tmp_path / "tiny.onnx", full_metadata())


def gpu(runs=None):
    """A `load` of an engine that is lost after the two runs of its warm-up and so many more."""
    return partial(FakeEngine, runs=None if runs is None else runs + 2)


def test_a_lost_gpu_costs_no_frame(tiny, monkeypatch, caplog):
    only(monkeypatch, cuda=gpu(runs=2))
    engine = open_engine(tiny)
    seen = []
    engine.changed = lambda changed: seen.append(changed.facts())
    expected = open_engine(tiny, "onnxruntime").run(IMAGE)
    backends = []
    for _ in range(4):
        for name, values in engine.run(IMAGE).items():
            np.testing.assert_array_equal(values, expected[name])
        backends.append(engine.backend)
    assert backends == ["fake (GPU)", "fake (GPU)", "onnxruntime (CPU)", "onnxruntime (CPU)"]
    assert engine.fallbacks == 1
    assert [facts["backend"] for facts in seen] == ["onnxruntime (CPU)"]
    assert seen[0]["engine_fallbacks"] == 1
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["tiny.onnx: fake (GPU) is lost (the GPU vanished); onnxruntime (CPU) runs it now"]


def test_a_lost_gpu_is_replaced_even_if_it_was_asked_for(tiny, monkeypatch):
    only(monkeypatch, cuda=gpu(runs=0))
    engine = open_engine(tiny, "cuda")
    engine.run(IMAGE)
    assert engine.backend == "onnxruntime (CPU)"


def test_where_nothing_else_runs_a_lost_gpu_is_an_error(tiny, monkeypatch):
    only(monkeypatch, cuda=gpu(runs=0))
    engine = open_engine(tiny)
    only(monkeypatch, onnxruntime=refuse("gone, too"))
    with pytest.raises(InputError, match=r"tiny\.onnx cannot be run: openvino: .*onnxruntime: gone, too"):
        engine.run(IMAGE)
    assert engine.fallbacks == 0


@pytest.mark.parametrize(("variant", "compared"), [("full", True), ("another", False), (None, False)])
def test_an_engine_file_falls_back_to_the_onnx_file_beside_it(tmp_path, monkeypatch, variant, compared):
    """`variant` of the model in that file, if there is one; the engine is of ``full``."""
    built = full_model(tmp_path / "built.onnx", full_metadata(height=32, width=48))
    file = tmp_path / "tiny.engine"
    file.write_bytes(b"a plan")
    if variant is not None:
        full_model(tmp_path / "tiny.onnx", full_metadata(variant=variant))
    only(monkeypatch, tensorrt=lambda request: gpu(runs=0)(Request(built)))
    engine = open_engine(file)
    assert (engine.choice.agreement is not None) == compared
    if compared:
        np.testing.assert_array_equal(engine.run(IMAGE)["scores"], IMAGE)
        assert engine.backend == "onnxruntime (CPU)"
    else:
        with pytest.raises(InputError, match=r"tiny\.engine runs no more; .* put the \.onnx"):
            engine.run(IMAGE)


def test_wrong_input_is_no_loss(tiny, monkeypatch):
    only(monkeypatch, cuda=gpu())
    engine = open_engine(tiny)
    with pytest.raises(InputError, match="multiples of 16"):
        engine.run(IMAGE[..., :-1])
    assert (engine.backend, engine.fallbacks) == ("fake (GPU)", 0)


def test_what_an_engine_refuses_is_no_loss(tiny, monkeypatch):
    engine = open_engine(tiny, "onnxruntime")

    def refuses(image):
        raise InputError("no images of this size")

    monkeypatch.setattr(engine._chosen[0], "run", refuses)
    with pytest.raises(InputError, match="no images of this size"):
        engine.run(IMAGE)
    assert engine.fallbacks == 0


def test_a_better_engine_takes_over_between_two_runs(tiny, monkeypatch, caplog):
    only(monkeypatch, tensorrt=refuse("no engine yet"))
    engine = open_engine(tiny)
    assert engine.backend == "onnxruntime (CPU)"
    before = engine.run(IMAGE)
    only(monkeypatch, tensorrt=gpu())
    seen = []
    engine.changed = seen.append
    with caplog.at_level(logging.INFO, logger="kp_frontend.engines"):
        engine.replace(open_engine(tiny))
    assert seen == [engine]
    assert engine.backend == engine.facts()["backend"] == "fake (GPU)"
    assert caplog.text.count("tiny.onnx: fake (GPU)") == 2
    np.testing.assert_array_equal(engine.run(IMAGE)["scores"], before["scores"])


def test_another_model_takes_no_ones_place(tiny, tmp_path):
    engine = open_engine(tiny, "onnxruntime")
    other = full_model(tmp_path / "other.onnx", full_metadata(variant="other"))
    with pytest.raises(InputError, match=r"other\.onnx is another model"):
        engine.replace(open_engine(other, "onnxruntime"))


def test_what_ran_lives_until_the_next_run(tiny):
    """Its outputs lie in its own memory, and are read after it was replaced."""
    engine = open_engine(tiny, "onnxruntime")
    engine.run(IMAGE)
    ran = weakref.ref(engine._chosen[0])
    engine.replace(open_engine(tiny, "onnxruntime"))
    gc.collect()
    assert ran() is not None
    engine.run(IMAGE)
    gc.collect()
    assert ran() is None


def test_replacing_while_frames_run(tiny):
    engine = open_engine(tiny, "onnxruntime")
    others = [open_engine(tiny, "onnxruntime") for _ in range(3)]
    expected, done = engine.run(IMAGE)["descriptors"].copy(), threading.Event()

    def replace():
        while not done.is_set():
            for other in others:
                engine.replace(other)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(100):
            np.testing.assert_array_equal(engine.run(IMAGE)["descriptors"], expected)
    finally:
        done.set()
        thread.join(10)
    assert not thread.is_alive()


def test_who_computes_is_known_of_every_extractor(tiny):
    assert backend_of(load_extractor("orb")) == "opencv"
    assert backend_of(load_extractor(str(tiny), backend="onnxruntime")) == "onnxruntime (CPU)"


def test_the_node_says_what_runs_and_lives_on_without_its_gpu(tiny, monkeypatch):
    pytest.importorskip("rclpy")
    from node_harness import Harness

    from kp_frontend.nodes.frontend_node import FrontendNode

    only(monkeypatch, cuda=gpu(runs=1))
    image = np.random.default_rng(1).integers(0, 256, (64, 96), np.uint8)
    with Harness(partial(FrontendNode, "extractor", odometry=False), features=str(tiny)) as harness:
        facts = harness.node.diagnostics.values()
        assert facts["backend"] == "fake (GPU)"
        assert "tensorrt: not on this machine" in facts["engine_reason"]
        assert facts["engine_agreement"].startswith("100.0 % of")
        assert facts["engine_fallbacks"] == 0
        first, second = (harness.features(harness.send(image)) for _ in range(2))
        facts = harness.node.diagnostics.values()
    np.testing.assert_array_equal(first[0].keypoints, second[0].keypoints)
    assert (facts["backend"], facts["engine_fallbacks"]) == ("onnxruntime (CPU)", 1)
    assert facts["engine_agreement"] == "not compared"
