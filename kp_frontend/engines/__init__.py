"""Engines: what runs a model file. One table by backend name; ``auto`` takes the fastest that works here."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from kp_frontend.errors import InputError, unknown_name
from kp_frontend.model_file import ModelMetadata

Backend = Literal["auto", "tensorrt", "cuda", "openvino", "onnxruntime", "pytorch"]
_LOG = logging.getLogger(__name__)
# Backend → module with `load(request) -> Engine`, the fastest first; imported when it is asked for.
BACKENDS = {"onnxruntime": "kp_frontend.engines.onnxruntime"}


class Unavailable(InputError):
    """A backend that cannot run here, or not this file: the message says why, and what to install or do."""


class EngineLost(RuntimeError):
    """An engine that ran and runs no more (the GPU vanished, or has no memory left)."""


@dataclass(frozen=True)
class Request:
    """What is to be run, and where.

    path: the model file.  threads: of a CPU backend, 0 = one a core.
    height, width: of the input that is expected, where it is known; 0 = any size.
    build: whether an engine that must be built first, for minutes, may be built now.
    """

    path: Path
    threads: int = 0
    height: int = 0
    width: int = 0
    build: bool = True


class Engine(Protocol):
    """One loaded network.

    backend: what runs it.  metadata: what the model file says of itself.  outputs: names of the arrays it gives.
    """

    backend: str
    metadata: ModelMetadata
    outputs: tuple[str, ...]

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32, for an image 1×C×H×W of ``metadata.input_dtype`` (float32 in [0, 1], or uint8).

        H and W are multiples of ``metadata.size_multiple``. The arrays are the engine's own and hold until its next
        run: who keeps them, copies them.
        points: what the model takes beside it (``decoding.further_inputs``, in that order), at least one point:
        keypoints 1×N×2 float32, pixels of `image`; descriptors 1×N×d float32.
        Raises EngineLost where what it ran on is gone.
        """
        ...


def open_engine(path: str | Path, backend: str = "auto", threads: int = 0) -> Engine:
    """Load the model file `path`.

    threads: of a CPU backend; 0 = one a core.
    Raises InputError for a missing, damaged or foreign file, and for a backend that is not here.
    """
    names = get_args(Backend)
    if backend not in names:
        raise unknown_name("backend", backend, names)
    path = Path(path)
    if not path.is_file():
        raise InputError(f"model {path} does not exist")
    if path.suffix != ".onnx":
        raise InputError(f"model {path.name} is not an .onnx file; give the .onnx that it was built from")
    chosen = next(iter(BACKENDS)) if backend == "auto" else backend
    if chosen not in BACKENDS:
        raise InputError(f"backend {backend!r} is not in this version; choose one of: auto, {', '.join(BACKENDS)}")
    engine = importlib.import_module(BACKENDS[chosen]).load(Request(path, threads))
    _LOG.info("%s: %s runs it (asked for: %s)", path.name, engine.backend, backend)
    return engine
