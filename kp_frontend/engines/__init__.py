"""Engines: what runs a model file. One table by backend name; ``auto`` takes the fastest that works here."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from kp_frontend.engines.base import Backend, Engine, EngineLost, Request, Unavailable
from kp_frontend.engines.choice import BACKENDS, Choice, choose, fastest_first
from kp_frontend.engines.live import LiveEngine
from kp_frontend.engines.parity import Agreement
from kp_frontend.errors import InputError, unknown_name
from kp_frontend.model_file import read_metadata

__all__ = ["BACKENDS", "Agreement", "Backend", "Choice", "Engine", "EngineLost", "LiveEngine", "Request", "Unavailable",
           "open_engine"]
_LOG = logging.getLogger(__name__)


def open_engine(
    path: str | Path, backend: str = "auto", threads: int = 0, *, height: int = 0, width: int = 0,
    build: bool | None = None,
) -> LiveEngine:
    """Load the model file `path` and run it once; ``choice`` of the engine says what runs it, and why.

    backend: ``auto`` takes the fastest that works here and agrees with ONNX Runtime on the CPU.
    threads, height, width, build: see `Request`; by default only ``tensorrt``, asked for by name, builds.
    Raises InputError for a missing, damaged or foreign file, and for a backend that is not here or disagrees.
    """
    names = get_args(Backend)
    if backend not in names:
        raise unknown_name("backend", backend, names)
    path = Path(path)
    if not path.is_file():
        raise InputError(f"model {path} does not exist")
    if path.suffix not in (".onnx", ".engine"):
        raise InputError(f"model {path.name} is neither an .onnx nor an .engine file; export it to .onnx")
    if path.suffix == ".engine" and backend not in ("auto", "tensorrt"):
        raise InputError(f"{path.name} is run by tensorrt only; give the .onnx that it was built from for {backend}")
    request = Request(path, threads, height, width, backend == "tensorrt" if build is None else build)
    if path.suffix == ".onnx":
        read_metadata(path)  # a file that is not ours says so, whatever is installed
    if backend == "auto" and path.suffix == ".onnx":
        chosen = choose(request, fastest_first())
    else:
        chosen = choose(request, ["tensorrt" if path.suffix == ".engine" else backend], asked=True)
    engine = LiveEngine(request, chosen)
    _LOG.info("%s: %s", path.name, engine.choice)
    return engine
