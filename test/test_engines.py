"""Engines: a model file runs, or says why it cannot, and what runs it is the fastest that is right."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from functools import partial
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from fake_backends import FakeEngine, blank, install, negated, only, refuse, shifted
from tiny_models import SIZE, cells_metadata, cells_model, full_metadata, full_model, points_metadata, points_model

from kp_frontend.engines import (
    BACKENDS,
    Agreement,
    EngineLost,
    Request,
    Unavailable,
    choice,
    cuda,
    onnxruntime,
    open_engine,
)
from kp_frontend.engines.choice import fastest_first
from kp_frontend.engines.openvino import _precision
from kp_frontend.engines.parity import compare, found_in, sample_inputs
from kp_frontend.errors import InputError
from kp_frontend.model_file import read_metadata


def no_driver():
    raise Unavailable("no GPU here")


@pytest.fixture
def tiny(tmp_path):
    return full_model(tmp_path / "tiny.onnx", full_metadata())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_model_runs_at_any_size(tiny, caplog, backend):
    pytest.importorskip(backend)
    with caplog.at_level(logging.INFO, logger="kp_frontend.engines"):
        engine = open_engine(tiny, backend, threads=1)
    assert f"tiny.onnx: {backend} (CPU), asked for" in caplog.text
    assert engine.backend == f"{backend} (CPU)"
    assert engine.metadata == full_metadata()
    random = np.random.default_rng(0)
    for height, width in ((16, 32), (48, 16), (16, 16), (32, 32), (64, 16), (16, 32)):
        image = random.random((1, 1, height, width), np.float32)
        maps = engine.run(image)
        assert set(maps) == set(engine.outputs) == {"scores", "descriptors"}
        np.testing.assert_allclose(maps["scores"], image)
        assert maps["descriptors"].shape == (1, 4, height // 8, width // 8)


def test_openvino_computes_in_single_precision(tmp_path):
    """Its default on many CPUs is bfloat16, with errors of a hundredth."""
    pytest.importorskip("openvino")
    path = cells_model(tmp_path / "cells.onnx", cells_metadata())
    image = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    expected, maps = (open_engine(path, backend).run(image) for backend in ("onnxruntime", "openvino"))
    for name, values in expected.items():
        np.testing.assert_allclose(maps[name], values, atol=1e-5, err_msg=name)


def test_openvino_takes_bfloat16_only_where_a_file_allows_it():
    metadata, able, asked = partial(full_metadata, precision="fp16"), ("FP32", "BF16", "INT8"), Request(Path("m.onnx"))
    assert _precision(asked, metadata(), able) == "bf16"
    assert _precision(replace(asked, exact=True), metadata(), able) == "f32"
    assert _precision(asked, metadata(), ("FP32", "INT8")) == "f32"
    assert _precision(asked, metadata(profile="sparse", top_k=9), able) == "f32"
    assert _precision(asked, full_metadata(), able) == "f32"


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_images_may_be_views_that_cannot_be_written(tiny, backend):
    pytest.importorskip(backend)
    engine = open_engine(tiny, backend)
    large = np.random.default_rng(0).random((1, 1, 32, 64), np.float32)
    large.flags.writeable = False
    for view in (large, large[..., 16:48]):
        np.testing.assert_allclose(engine.run(view)["scores"], view)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_points_may_be_as_many_as_there_are(tmp_path, backend):
    pytest.importorskip(backend)
    engine = open_engine(points_model(tmp_path / "points.onnx", points_metadata()), backend)
    image = np.full((1, 1, 16, 16), 0.5, np.float32)
    for count in (1, 7, 3):
        points = np.random.default_rng(count).random((1, count, 2), np.float32)
        found = engine.run(image, keypoints=points)["point_descriptors"]
        np.testing.assert_allclose(found[..., :2], points + 0.5, rtol=1e-6)


def test_a_uint8_input_is_taken_as_it_is(tmp_path):
    pytest.importorskip("openvino")
    path = full_model(tmp_path / "uint8.onnx", full_metadata(input_dtype="uint8"))
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16), np.uint8)
    for backend in ("openvino", "onnxruntime"):
        engine = open_engine(path, backend)
        np.testing.assert_allclose(engine.run(image)["scores"], image / np.float32(255), atol=1e-6)
        with pytest.raises(InputError, match=r"takes 1×1×H×W uint8, got 1×1×16×16 float32"):
            engine.run(image.astype(np.float32))


def test_auto_takes_the_first_that_works_and_says_why(tiny, monkeypatch, caplog):
    only(monkeypatch, tensorrt=refuse("no GPU: plug one in"), cuda=FakeEngine)
    with caplog.at_level(logging.INFO, logger="kp_frontend.engines"):
        engine = open_engine(tiny)
    choice = engine.choice
    assert engine.backend == choice.backend == "fake (GPU)"
    assert choice.reason == "the fastest that works here (tensorrt: no GPU: plug one in)"
    one = pytest.approx(1.0)
    assert choice.agreement == Agreement(choice.agreement.keypoints, 1.0, nan, 0.0, one, one)
    assert choice.agreement.keypoints > 100
    assert choice.warm_up_ms > 0
    assert "100.0 % of" in caplog.text


def test_auto_takes_openvino_where_there_is_no_gpu(tiny, monkeypatch):
    pytest.importorskip("openvino")
    for backend in ("tensorrt", "cuda"):
        install(monkeypatch, backend, refuse("no GPU"))
    assert open_engine(tiny).backend == "openvino (CPU)"


def some_zero(outputs):
    """Descriptors of zeros on the right."""
    descriptors = outputs["descriptors"].copy()
    descriptors[..., int(0.6 * descriptors.shape[3]) :] = 0
    return {**outputs, "descriptors": descriptors}


@pytest.mark.parametrize("change", [shifted, negated, some_zero])
def test_an_engine_that_disagrees_is_not_taken(tiny, monkeypatch, caplog, change):
    only(monkeypatch, cuda=lambda request: FakeEngine(request, change))
    engine = open_engine(tiny)
    assert engine.backend == "onnxruntime (CPU)"
    assert "tiny.onnx: not run by cuda, which finds something else than onnxruntime" in caplog.text
    assert "keypoints within 1 px" in engine.choice.reason
    with pytest.raises(InputError, match=r"cuda: finds something else than onnxruntime: .* % of \d+ keypoints"):
        open_engine(tiny, "cuda")


@pytest.mark.parametrize("output", ["scores", "descriptors"])
@pytest.mark.parametrize("threshold", [0.2, 9.0])
def test_what_is_no_number_never_agrees(tmp_path, monkeypatch, threshold, output):
    """Not even where the model finds nothing in the synthetic image, as scores of NaN do."""
    path = full_model(tmp_path / "tiny.onnx", full_metadata(decoder_parameters={"threshold": threshold}))
    only(monkeypatch, cuda=FakeEngine)
    assert (str(open_engine(path).choice.agreement) == "no keypoints to compare") == (threshold > 1)
    only(monkeypatch, cuda=lambda request: FakeEngine(request, lambda outputs: {
        **outputs, output: blank(outputs)[output]}))
    assert "cuda: finds something else than onnxruntime: values that are no numbers" in open_engine(path).choice.reason


class Shortened(FakeEngine):
    """Finds all but 15 % of the keypoints unless it is to be exact: `good`, and still too few for fewer bits."""

    def __init__(self, request):
        super().__init__(request, lambda outputs: outputs if request.exact else fewer(outputs))
        self.shortened = not request.exact
        self.backend = "exact" if request.exact else "short"


def fewer(outputs):
    scores = outputs["scores"].copy()
    scores[..., : int(0.15 * scores.shape[3])] = 0
    return {**outputs, "scores": scores}


@pytest.mark.parametrize("asked", ["auto", "openvino"])
def test_fewer_bits_are_taken_only_where_they_find_the_same(tiny, monkeypatch, caplog, asked):
    """And if not, the same backend computes in all of them."""
    only(monkeypatch, openvino=Shortened)
    with caplog.at_level(logging.INFO, logger="kp_frontend.engines"):
        engine = open_engine(tiny, asked)
    assert engine.backend == "exact"
    assert engine.choice.agreement.within_pixel == 1
    assert "short finds something else than onnxruntime (8" in caplog.text
    monkeypatch.setattr("test_engines.fewer", some_zero)
    assert open_engine(tiny, asked).backend == "exact"
    monkeypatch.setattr("test_engines.fewer", lambda outputs: outputs)
    assert open_engine(tiny, asked).backend == "short"
    install(monkeypatch, "onnxruntime", refuse("not installed"))
    assert open_engine(tiny, asked).backend == "exact"


@pytest.mark.parametrize("runs", [0, 1])
def test_an_engine_whose_first_runs_fail_is_not_taken(tiny, monkeypatch, runs):
    only(monkeypatch, cuda=lambda request: FakeEngine(request, runs=runs))
    assert "cuda: its first runs failed (the GPU vanished)" in open_engine(tiny).choice.reason


def test_a_broken_library_does_not_keep_others_from_running(tiny, monkeypatch, caplog):
    def broken(request):
        raise AttributeError("no such\nfunction")

    only(monkeypatch, cuda=broken)
    engine = open_engine(tiny)
    assert engine.backend == "onnxruntime (CPU)"
    assert "cuda: AttributeError: no such function" in engine.choice.reason
    assert "tiny.onnx: cuda fails here" in caplog.text
    with pytest.raises(AttributeError):
        open_engine(tiny, "cuda")


def test_without_onnxruntime_nothing_is_compared(tiny, monkeypatch):
    pytest.importorskip("openvino")
    for backend in ("tensorrt", "cuda"):
        install(monkeypatch, backend, refuse("no GPU"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    engine = open_engine(tiny)
    assert engine.backend == "openvino (CPU)"
    assert engine.choice.agreement is None
    assert "; not compared with onnxruntime; first run" in str(engine.choice)
    with pytest.raises(InputError, match=r"onnxruntime: not installed: pip install 'kp_frontend\[cpu\]'"):
        open_engine(tiny, "onnxruntime")


@pytest.mark.parametrize(("broken", "left"), [("onnxruntime", "openvino"), ("openvino", "onnxruntime")])
def test_a_library_that_cannot_be_loaded_is_said_and_the_other_runs(tiny, tmp_path, monkeypatch, broken, left):
    pytest.importorskip("openvino")
    monkeypatch.setattr(cuda, "open_driver", no_driver)
    (tmp_path / f"{broken}.py").write_text("raise ImportError('lib.so.1: cannot\\nopen')")
    monkeypatch.delitem(sys.modules, broken)
    monkeypatch.syspath_prepend(tmp_path)
    assert open_engine(tiny).backend == f"{left} (CPU)"
    with pytest.raises(InputError, match=rf"{broken} is installed but cannot be loaded \(lib\.so\.1: cannot open\)"):
        open_engine(tiny, broken)


def test_where_nothing_runs_every_reason_is_given(tiny, monkeypatch):
    only(monkeypatch, onnxruntime=refuse("not today"))
    reasons = "tensorrt, cuda, openvino, pytorch: not on this machine; onnxruntime: not today"
    with pytest.raises(InputError, match=f"cannot be run: {reasons}$"):
        open_engine(tiny)


def test_agreement_of_hand_made_points():
    expected = np.array([[10, 10], [20, 20], [30, 30], [40, 40]], np.float32), np.eye(4, dtype=np.float32)
    moved = expected[0] + np.array([[0.5, 0], [0, 0.9], [2, 0], [0, 0]], np.float32)
    turned = expected[1].copy()
    turned[3] = [0, 0, 0.6, 0.8]
    low = pytest.approx(0.84)  # of 0.8, 1 and 1, a fifth of the way from the first to the second
    assert compare(expected, (moved[::-1], turned[::-1])) == Agreement(4, 0.75, 0.25, 0.5, 1.0, low)
    assert compare(expected, (expected[0], -expected[1])) == Agreement(4, 1.0, 0.0, 0.0, -1.0, -1.0)
    assert not compare(expected, (expected[0] + np.float32(0.3), expected[1])).good  # half a pixel, as by align_corners
    nothing = np.zeros((0, 2), np.float32), np.zeros((0, 4), np.float32)
    assert not compare(expected, nothing).good
    assert not compare(nothing, expected).good
    assert str(compare(nothing, expected)) == "keypoints where it finds none"
    assert compare(nothing, nothing).good
    assert str(compare(nothing, nothing)) == "no keypoints to compare"


def test_agreement_looks_at_what_the_engine_has_too_much_and_at_the_worst_descriptors():
    random = np.random.default_rng(0)
    points, descriptors = random.uniform(0, 600, (100, 2)).astype(np.float32), np.eye(100, dtype=np.float32)
    false = points[:50] + np.float32([5000, 0])
    more = np.concatenate([points, false]), np.concatenate([descriptors, descriptors[:50]])
    assert compare((points, descriptors), more).extra == pytest.approx(1 / 3)
    assert not compare((points, descriptors), more).good
    assert compare((points, descriptors), (more[0][:130], more[1][:130])).good
    zeros = descriptors.copy()
    zeros[:15] = 0
    assert compare((points, descriptors), (points, zeros)).cosine == 1
    assert not compare((points, descriptors), (points, zeros)).good
    cut = compare((points, descriptors), (more[0][20:120], more[1][20:120]), top_k=100)
    assert cut.good
    assert "extra" not in str(cut)


def test_sparse_outputs_are_compared_without_their_padding():
    metadata = full_metadata(profile="sparse", top_k=3)
    outputs = {
        "keypoints": np.array([[[5, 6], [7, 8], [0, 0]]], np.float32), "scores": np.array([[0.9, 0.5, 0]], np.float32),
        "descriptors": np.ones((1, 3, SIZE), np.float32) / 2,
    }
    keypoints, descriptors = found_in(outputs, sample_inputs(metadata), metadata)
    np.testing.assert_array_equal(keypoints, [[5, 6], [7, 8]])
    assert descriptors.shape == (2, SIZE)


def test_the_sample_has_the_size_that_the_model_takes():
    assert sample_inputs(full_metadata())["image"].shape == (1, 1, 480, 640)
    assert sample_inputs(full_metadata(), 100, 150)["image"].shape == (1, 1, 112, 160)
    fixed = sample_inputs(cells_metadata(height=64, width=128, input_dtype="uint8"), 480, 640)["image"]
    assert fixed.shape == (1, 3, 64, 128)
    assert fixed.dtype == np.uint8


def test_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.onnx does not exist"):
        open_engine("nowhere.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model at all", 300, -1, -400])
@pytest.mark.parametrize("backend", ["auto", "openvino", "onnxruntime"])
def test_damaged_files_are_refused_in_one_line(tiny, content, backend):
    tiny.write_bytes(tiny.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(InputError, match="is not an ONNX file that can be run") as caught:
        open_engine(tiny, backend)
    assert "\n" not in str(caught.value)


def test_a_file_with_broken_content_is_refused_in_one_line(tiny):
    content = tiny.read_bytes()
    tiny.write_bytes(content.replace(b"Conv", b"Cnov"))
    with pytest.raises(InputError, match="Cnov") as caught:
        open_engine(tiny)
    assert "\n" not in str(caught.value)


def test_metadata_is_read_without_a_library(tiny):
    assert read_metadata(tiny) == full_metadata()


def test_a_model_without_metadata_says_how_to_export(tmp_path):
    with pytest.raises(InputError, match=r"no 'kp_frontend' metadata.*python -m kp_training export"):
        open_engine(full_model(tmp_path / "tiny.onnx", None))


def test_a_number_without_an_end_is_no_onnx_file(tiny):
    tiny.write_bytes(b"\xff" * 10_000_000)
    with pytest.raises(InputError, match=r"not an ONNX file that can be run \(no protobuf\)"):
        read_metadata(tiny)


@pytest.mark.parametrize(("changes", "wanted"), [
    ({"stride": 4}, "1×4×120×160"), ({"descriptor_size": 128}, "1×128×60×80"), ({"descriptor_size": 0}, "1×0×60×80"),
])
def test_descriptors_that_are_not_as_the_metadata_says_are_refused(tmp_path, changes, wanted):
    path = full_model(tmp_path / "tiny.onnx", full_metadata(**changes))
    with pytest.raises(InputError, match=rf"tiny\.onnx: .* descriptors 1×4×60×80 .* says {wanted}; export it again"):
        open_engine(path, "onnxruntime")


@pytest.mark.parametrize("backend", ["auto", "openvino", "onnxruntime"])
def test_a_model_for_another_input_is_refused(tmp_path, backend):
    with pytest.raises(InputError, match=r"made for 3 channels, but its metadata says gray \(1\)"):
        open_engine(full_model(tmp_path / "three.onnx", full_metadata(), channels=3), backend)
    with pytest.raises(InputError, match=r"takes picture .*expected one input, image"):
        open_engine(full_model(tmp_path / "picture.onnx", full_metadata(), name="picture"), backend)


def test_images_that_the_network_does_not_take_are_refused(tiny, tmp_path):
    engine = open_engine(tiny, "onnxruntime")
    with pytest.raises(InputError, match="multiples of 16, got 40×32"):
        engine.run(np.zeros((1, 1, 32, 40), np.float32))
    with pytest.raises(InputError, match="takes 1×1×H×W float32, got 1×3×32×32 float32"):
        engine.run(np.zeros((1, 3, 32, 32), np.float32))
    fixed = open_engine(full_model(tmp_path / "fixed.onnx", full_metadata(height=32, width=48)), "onnxruntime")
    with pytest.raises(InputError, match="takes 48×32 only, got 32×32"):
        fixed.run(np.zeros((1, 1, 32, 32), np.float32))


def test_other_backends_and_files_say_so(tiny):
    with pytest.raises(InputError, match="unknown backend 'cuda12'; choose one of: auto, cuda"):
        open_engine(tiny, "cuda12")
    engine = tiny.with_suffix(".engine")
    engine.write_bytes(b"x")
    with pytest.raises(InputError, match=r"tiny\.engine is run by tensorrt only; give the \.onnx"):
        open_engine(engine, "openvino")
    with pytest.raises(InputError, match="tensorrt: "):
        open_engine(engine)
    text = tiny.with_suffix(".txt")
    text.write_text("x")
    with pytest.raises(InputError, match=r"tiny\.txt is neither an \.onnx nor an \.engine file"):
        open_engine(text)


class CudaOnTheCpu:
    """The module onnxruntime, whose CUDA is the CPU; whole: whether all nodes are on it."""

    def __init__(self, whole=True):
        import onnxruntime as real

        self._real, self._whole, self.OrtValue, self.sessions = real, whole, self, []

    def SessionOptions(self):
        entries: dict[str, str] = {}
        return SimpleNamespace(entries=entries, add_session_config_entry=entries.__setitem__)

    def InferenceSession(self, path, options, providers, enable_fallback):
        assert [name for name, _ in providers] == ["CUDAExecutionProvider"]
        assert not enable_fallback
        self.sessions.append(options.entries["session.disable_cpu_ep_fallback"])
        if not self._whole and self.sessions[-1] == "1":
            raise RuntimeError("nodes on the CPU EP, but fallback to CPU EP has been explicitly disabled by the user")
        session = self._real.InferenceSession(path, providers=["CPUExecutionProvider"])
        session.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return session

    def ortvalue_from_numpy(self, array, device, number):
        assert (device, number) == ("cuda", 0)
        assert array.flags.c_contiguous  # its bytes are copied as they lie
        return self._real.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)


@pytest.mark.parametrize("whole", [True, False])
def test_cuda_keeps_its_buffers(tiny, whole):
    library = CudaOnTheCpu(whole)
    engine = cuda.load(Request(tiny), library)
    assert library.sessions == (["1"] if whole else ["1", "0"])
    reference = onnxruntime.load(Request(tiny))
    random = np.random.default_rng(0)
    for height, width in ((16, 32), (16, 32), (48, 16)):
        image = random.random((1, 1, height, width), np.float32)
        for name, values in reference.run(image).items():
            np.testing.assert_array_equal(engine.run(image)[name], values)


def test_cuda_takes_points_that_do_not_lie_in_one_piece(tmp_path):
    engine = cuda.load(Request(points_model(tmp_path / "points.onnx", points_metadata())), CudaOnTheCpu())
    image, columns = np.full((1, 1, 16, 16), 0.5, np.float32), np.random.default_rng(0).random((2, 5), np.float32)
    for _ in range(2):
        columns += 1
        found = engine.run(image, keypoints=columns.T[None])["point_descriptors"]
        np.testing.assert_allclose(found[0, :, :2], columns.T + 0.5, rtol=1e-6)


def test_a_lost_or_full_gpu_says_what_to_do(tiny, monkeypatch):
    engine = cuda.load(Request(tiny), CudaOnTheCpu())
    image = np.zeros((1, 1, 16, 16), np.float32)
    for text, wanted in (
        ("CUDA failure 2: out of memory ; GPU=0", "out of GPU memory: use smaller images or a smaller top_k"),
        ("CUDA failure 719: unspecified launch failure", "CUDA through onnxruntime failed .*719"),
    ):
        def fail(binding, text=text):
            raise RuntimeError(text)

        monkeypatch.setattr(engine._session, "run_with_iobinding", fail)
        with pytest.raises(EngineLost, match=wanted):
            engine.run(image)


def test_cuda_is_not_taken_from_an_onnxruntime_without_it(tiny, monkeypatch):
    import onnxruntime as real

    if "CUDAExecutionProvider" in real.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(cuda, "open_driver", lambda: None)
    with pytest.raises(InputError, match=r"without CUDA: pip uninstall onnxruntime, then .*kp_frontend\[gpu\]"):
        open_engine(tiny, "cuda")


def test_without_a_gpu_nothing_is_to_be_installed_for_one(tiny, monkeypatch):
    monkeypatch.setattr(cuda, "open_driver", no_driver)
    with pytest.raises(InputError, match=r"cuda: no GPU here$"):
        open_engine(tiny, "cuda")


def test_pytorch_comes_last_but_where_it_has_a_gpu(monkeypatch):
    monkeypatch.setattr(choice, "open_driver", no_driver)
    assert list(fastest_first()) == list(BACKENDS) == ["tensorrt", "cuda", "openvino", "onnxruntime", "pytorch"]
    monkeypatch.setattr(choice, "open_driver", lambda: None)
    for module, order in ((SimpleNamespace(has_gpu=lambda: True), ["pytorch", "openvino", "onnxruntime"]),
                          (SimpleNamespace(has_gpu=lambda: False), ["openvino", "onnxruntime", "pytorch"])):
        monkeypatch.setattr(choice.importlib, "import_module", lambda name, module=module: module)
        assert list(fastest_first()) == ["tensorrt", "cuda", *order]
