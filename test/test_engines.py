"""Engines: a model file runs, or says why it cannot."""

from __future__ import annotations

import logging

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from tiny_models import full_metadata, full_model

from kp_frontend.engines import BACKENDS, open_engine
from kp_frontend.errors import InputError


@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_a_model_runs_at_two_sizes(tmp_path, caplog, backend):
    path = full_model(tmp_path / "tiny.onnx", full_metadata())
    with caplog.at_level(logging.INFO, logger="kp_frontend.engines"):
        engine = open_engine(path, backend, threads=1)
    assert "tiny.onnx: onnxruntime (CPU) runs it" in caplog.text
    assert engine.backend == "onnxruntime (CPU)"
    assert engine.metadata == full_metadata()
    for height, width in ((16, 32), (48, 16)):
        image = np.random.default_rng(0).random((1, 1, height, width), np.float32)
        maps = engine.run(image)
        assert set(maps) == set(engine.outputs) == {"scores", "descriptors"}
        np.testing.assert_allclose(maps["scores"], image)
        assert maps["descriptors"].shape == (1, 4, height // 8, width // 8)


def test_missing_file_is_named():
    with pytest.raises(InputError, match=r"nowhere\.onnx does not exist"):
        open_engine("nowhere.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model at all", None])
def test_damaged_files_are_refused_in_one_line(tmp_path, content):
    path = full_model(tmp_path / "tiny.onnx", full_metadata())
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match="is not an ONNX file that can be run") as caught:
        open_engine(path)
    assert "\n" not in str(caught.value)


def test_a_model_without_metadata_says_how_to_export(tmp_path):
    with pytest.raises(InputError, match=r"no 'kp_frontend' metadata.*python -m kp_training export"):
        open_engine(full_model(tmp_path / "tiny.onnx", None))


def test_a_model_for_another_channel_count_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"made for 3 channels, but its metadata says gray \(1\)"):
        open_engine(full_model(tmp_path / "tiny.onnx", full_metadata(), channels=3))


def test_a_model_with_another_input_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"takes picture .*expected one input, image"):
        open_engine(full_model(tmp_path / "tiny.onnx", full_metadata(), name="picture"))


def test_other_backends_and_files_say_so(tmp_path):
    path = full_model(tmp_path / "tiny.onnx", full_metadata())
    with pytest.raises(InputError, match="unknown backend 'cuda12'; choose one of: auto, cuda"):
        open_engine(path, "cuda12")
    if "tensorrt" not in BACKENDS:
        with pytest.raises(InputError, match="'tensorrt' is not in this version; choose one of: auto, onnxruntime"):
            open_engine(path, "tensorrt")
    (tmp_path / "tiny.engine").write_bytes(b"x")
    with pytest.raises(InputError, match=r"tiny\.engine is not an \.onnx file"):
        open_engine(tmp_path / "tiny.engine")
