"""Which backend runs a model file, and why: the first in the table that works here and finds what it should."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kp_frontend.engines.base import Engine, EngineLost, Request, Unavailable
from kp_frontend.engines.cuda_driver import open_driver
from kp_frontend.engines.parity import Agreement, Found, agreement_with, found_in, sample_inputs
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata, read_metadata
from kp_frontend.sparse import check_descriptors, check_outputs

# Backend → module with `load(request) -> Engine`, the fastest first; imported when it is asked for.
BACKENDS = {
    "tensorrt": "kp_frontend.engines.tensorrt",
    "cuda": "kp_frontend.engines.cuda",
    "openvino": "kp_frontend.engines.openvino",
    "onnxruntime": "kp_frontend.engines.onnxruntime",
    "pytorch": "kp_frontend.engines.pytorch",
}
CPU_BACKENDS = ("openvino", "onnxruntime")  # what is left where a GPU is lost
_REFERENCE, _PYTORCH = "onnxruntime", "pytorch"
_SHORTENED = 0.9
"""Least share of the keypoints that must stay where an engine takes fewer bits than the file's own."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What runs a model file.

    backend: as ``Engine.backend``.  reason: why this one, and why none that is faster.
    agreement: with ONNX Runtime on the CPU, on a synthetic image; None where there was nothing to compare.
    warm_up_ms: of the first run.
    """

    backend: str
    reason: str
    agreement: Agreement | None
    warm_up_ms: float

    def __str__(self) -> str:
        compared = ""
        if self.agreement:
            compared = f"beside onnxruntime: {self.agreement}; "
        elif not self.backend.startswith(_REFERENCE):
            compared = "not compared with onnxruntime; "
        return f"{self.backend}, {self.reason}; {compared}first run {self.warm_up_ms:.0f} ms"


def fastest_first() -> Iterator[str]:
    """Backends as ``auto`` tries them: PyTorch, the slowest on a CPU, goes before the CPU's where it has a GPU."""
    gpu = [backend for backend in BACKENDS if backend not in (*CPU_BACKENDS, _PYTORCH)]
    yield from gpu
    rest = (_PYTORCH, *CPU_BACKENDS) if _pytorch_has_gpu() else (*CPU_BACKENDS, _PYTORCH)
    yield from rest


def _pytorch_has_gpu() -> bool:
    try:
        open_driver()  # at once, where importing torch takes seconds
        return importlib.import_module(BACKENDS[_PYTORCH]).has_gpu()
    except (Unavailable, ImportError):
        return False


def choose(request: Request, backends: Iterable[str], asked: bool = False) -> tuple[Engine, Choice]:
    """The first of `backends` that runs the model file here and agrees with ONNX Runtime, and has run.

    asked: whether the user names the backend.
    Raises InputError with every backend's reason where none does, and for a bad model file.
    """
    trial, refused = Trial(request), {}
    for backend in backends:
        try:
            engine, agreement, spent = trial.run(backend)
        except Unavailable as error:
            refused[backend] = str(error)
            if isinstance(error, Disagrees) and not asked:
                _LOG.warning("%s: not run by %s, which %s", request.path.name, backend, error)
        except InputError:
            raise
        except Exception as error:
            if asked:
                raise
            # A library that is broken here must not keep those from running that are not.
            refused[backend] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            _LOG.warning("%s: %s fails here", request.path.name, backend, exc_info=True)
        else:
            why = "the fastest that works here" + (f" ({_listed(refused)})" if refused else "")
            return engine, Choice(engine.backend, "asked for" if asked else why, agreement, spent)
    raise InputError(f"model {request.path} cannot be run: {_listed(refused)}")


def _listed(refused: Mapping[str, str]) -> str:
    backends: dict[str, list[str]] = {}
    for backend, reason in refused.items():
        backends.setdefault(reason, []).append(backend)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in backends.items())


class Disagrees(Unavailable):
    """A backend that finds something else than ONNX Runtime on the CPU."""


class Trial:
    """Backends tried with one model file on one image."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._inputs: dict[str, np.ndarray] = {}
        self._expected: Found | None = None

    def run(self, backend: str) -> tuple[Engine, Agreement | None, float]:
        """Load and run: the engine, its agreement with the reference if there is one, milliseconds of the first run.

        An engine that takes fewer bits than the file's own must be shown to do as well, or takes them all.
        Raises Unavailable where it cannot run, or finds something else; InputError where the file is bad.
        """
        engine, agreement, spent = self._run(backend, self._request)
        if getattr(engine, "shortened", False) and (
            agreement is None or not agreement.good or agreement.within_pixel < _SHORTENED
        ):
            _LOG.info("%s: %s %s, so all bits are computed", self._request.path.name, engine.backend,
                      f"finds something else than onnxruntime ({agreement})" if agreement else "was not compared")
            engine, agreement, spent = self._run(backend, replace(self._request, exact=True))
        if agreement is not None and not agreement.good:
            raise Disagrees(f"finds something else than onnxruntime: {agreement}")
        return engine, agreement, spent

    def _run(self, backend: str, request: Request) -> tuple[Engine, Agreement | None, float]:
        """As `run`, of exactly what `request` asks for, be the agreement good or bad."""
        engine = _load(backend, request)
        check_outputs(request.path.name, engine.metadata, engine.outputs)
        self._inputs = self._inputs or sample_inputs(engine.metadata, request.height, request.width)
        begin = time.perf_counter()
        try:
            outputs = engine.run(**self._inputs)
            spent = (time.perf_counter() - begin) * 1e3
            if backend not in CPU_BACKENDS:
                outputs = engine.run(**self._inputs)  # the second run of a size is that of its CUDA graph
        except EngineLost as error:
            raise Unavailable(f"its first runs failed ({error})") from error
        check_descriptors(request.path.name, engine.metadata, self._inputs, outputs)
        expected = None if backend == _REFERENCE else self._reference(engine.metadata)
        if expected is None:
            return engine, None, spent
        return engine, agreement_with(expected, outputs, self._inputs, engine.metadata), spent

    def _reference(self, metadata: ModelMetadata) -> Found | None:
        """What ONNX Runtime finds on the CPU; None where it, or the ONNX file of `metadata`, is not here."""
        request = on_cpu(self._request, metadata)
        if request is None:
            return None
        if self._expected is None:
            try:
                reference = _load(_REFERENCE, request)
            except Unavailable:
                return None
            self._expected = found_in(reference.run(**self._inputs), self._inputs, metadata)
        return self._expected


def on_cpu(request: Request, metadata: ModelMetadata) -> Request | None:
    """What to ask a CPU backend for; None where a TensorRT engine of `metadata` lies alone.

    A CPU runs the ONNX file; an engine's is the one beside it, if that is the same model (for any size of image).
    """
    path = request.path.with_suffix(".onnx")
    if path == request.path:
        return request
    if not path.is_file() or replace(read_metadata(path), height=metadata.height, width=metadata.width) != metadata:
        return None
    return replace(request, path=path)


def _load(backend: str, request: Request) -> Engine:
    return importlib.import_module(BACKENDS[backend]).load(request)
