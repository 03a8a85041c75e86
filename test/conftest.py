"""What every test wants: a cache of its own, and the threads that the process began with."""

from __future__ import annotations

import functools
import sys

import cv2
import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("KP_FRONTEND_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def file_of(tmp_path_factory):
    """(name in ``exported.METHODS``, top_k, changes of the metadata) → the model file, written once."""
    from exported import network_of

    @functools.cache
    def written(name, top_k=0, **changes):
        return network_of(name).write(tmp_path_factory.mktemp(name) / "model.onnx", top_k, **changes)

    return written


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The file of a tiny network, and a cache that holds no engine of it."""
    from tiny_models import full_metadata, full_model

    monkeypatch.setenv("KP_FRONTEND_CACHE", str(tmp_path / "cache"))
    return full_model(tmp_path / "tiny.onnx", full_metadata())


@pytest.fixture(autouse=True)
def _threads_as_before():
    """Benchmarks set the threads of their process; with more or fewer, sums round otherwise and runs differ."""
    torch = sys.modules.get("torch")
    before = cv2.getNumThreads(), torch.get_num_threads() if torch else None
    yield
    cv2.setNumThreads(before[0])
    if before[1] is not None:
        torch.set_num_threads(before[1])
