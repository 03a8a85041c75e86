"""Networks on a CPU through ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from kp_frontend.decoding import further_inputs
from kp_frontend.engines import Request, Unavailable
from kp_frontend.errors import InputError
from kp_frontend.model_file import KEY, ModelMetadata

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """A loaded ONNX Runtime session; see `engines.Engine`."""

    def __init__(self, session, metadata: ModelMetadata) -> None:
        self._session = session
        self.metadata = metadata
        self.backend = f"onnxruntime ({session.get_providers()[0].removesuffix('ExecutionProvider')})"
        self.outputs = tuple(output.name for output in session.get_outputs())

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`."""
        return dict(zip(self.outputs, self._session.run(None, {"image": image, **points})))


def load(request: Request) -> OnnxRuntimeEngine:
    """Open an ONNX file; InputError where it is damaged, has no metadata, or is made for another input."""
    path = request.path
    try:
        import onnxruntime
    except ImportError:
        raise Unavailable("learned features need onnxruntime: pip install 'kp_frontend[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.threads or _cores()
    options.log_severity_level = 3  # exporters leave harmless warnings; errors are raised
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDER])
    except Exception as error:  # its exception classes have no common base but Exception
        reason = " ".join(str(error).split())
        raise InputError(f"model {path} is not an ONNX file that can be run ({reason})") from error
    metadata = ModelMetadata.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), f"model {path}")
    _check_input(path, session.get_inputs(), metadata)
    return OnnxRuntimeEngine(session, metadata)


def _check_input(path: Path, inputs, metadata: ModelMetadata) -> None:
    expected = {"image": 4} | dict.fromkeys(further_inputs(metadata), 3)
    if {entry.name: len(entry.shape) for entry in inputs} != expected:
        seen = ", ".join(f"{entry.name} {entry.shape}" for entry in inputs)
        wanted = ", ".join(["image 1×C×H×W", *(f"{name} 1×N×…" for name in further_inputs(metadata))])
        what = "one input" if len(expected) == 1 else f"{len(expected)} inputs"
        raise InputError(f"model {path} takes {seen}; expected {what}, {wanted}: export it again")
    channels = next(entry.shape[1] for entry in inputs if entry.name == "image")
    if isinstance(channels, int) and channels != metadata.channels:
        raise InputError(
            f"model {path} was made for {channels} channels, but its metadata says {metadata.color} "
            f"({metadata.channels}): export it again"
        )


def _cores() -> int:
    """Cores this process may use; ONNX Runtime's own count ignores the limits of a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
