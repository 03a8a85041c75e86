"""Networks on a CPU through ONNX Runtime: the engine that every other one is compared with."""

from __future__ import annotations

import numpy as np

from kp_frontend.engines.base import Request, check_graph, import_or_refuse
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata, read_metadata

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """A loaded ONNX Runtime session; see `engines.Engine`."""

    concurrent = True

    def __init__(self, session, metadata: ModelMetadata) -> None:
        self._session = session
        self.metadata = metadata
        self.backend = "onnxruntime (CPU)"
        self.outputs = tuple(output.name for output in session.get_outputs())

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`."""
        return dict(zip(self.outputs, self._session.run(None, {"image": image, **points})))


def load(request: Request) -> OnnxRuntimeEngine:
    """Open an ONNX file; InputError where it is damaged, has no metadata, or is made for another input."""
    path = request.path
    onnxruntime = import_or_refuse("onnxruntime", "cpu")
    metadata = read_metadata(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request.cpu_threads
    options.log_severity_level = 3  # exporters leave harmless warnings; errors are raised
    # Threads that spin between two runs gain 7 % on idle cores, and cost half of all time where others want them:
    # OpenCV, a second camera, the rest of the robot.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDER])
    except Exception as error:  # its exception classes have no common base but Exception
        reason = " ".join(str(error).split())
        raise InputError(f"model {path} is not an ONNX file that can be run ({reason})") from error
    check_graph(path, {entry.name: entry.shape for entry in session.get_inputs()}, metadata)
    return OnnxRuntimeEngine(session, metadata)
