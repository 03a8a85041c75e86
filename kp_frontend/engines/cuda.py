"""Networks on an NVIDIA GPU through ONNX Runtime: no engine to build, at some of TensorRT's speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kp_frontend.engines.base import EngineLost, Request, Unavailable, check_graph, import_or_refuse
from kp_frontend.engines.cuda_driver import open_driver
from kp_frontend.model_file import ModelMetadata, read_metadata

_PROVIDER = "CUDAExecutionProvider"
_SETTINGS = {
    "cudnn_conv_algo_search": "EXHAUSTIVE",  # once a size, in its first run
    "cudnn_conv_use_max_workspace": "1",
    "use_tf32": "0",  # 10 bits of a float32's 24: points move
    "arena_extend_strategy": "kSameAsRequested",  # leaves the rest of the memory to others
}
_FULL = ("out of memory", "Failed to allocate memory", "CUDA failure 2:")
_ON_CPU = "explicitly disabled"  # what onnxruntime says of nodes that it would run on the CPU


class CudaEngine:
    """A session whose arrays stay where they are on the GPU from run to run; see `engines.Engine`."""

    concurrent = False

    backend = "cuda (onnxruntime)"

    def __init__(self, session: Any, values: Any, metadata: ModelMetadata) -> None:
        self._session, self._values, self.metadata = session, values, metadata
        self.outputs = tuple(output.name for output in session.get_outputs())
        self._inputs: dict[str, Any] = {}
        self._shapes: list[tuple[int, ...]] = []
        self._binding: Any = None

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`."""
        arrays = {name: np.ascontiguousarray(values) for name, values in {"image": image, **points}.items()}
        try:
            self._upload(arrays)
            self._session.run_with_iobinding(self._binding)
            return dict(zip(self.outputs, self._binding.copy_outputs_to_cpu()))
        except Exception as error:  # its exception classes have no common base but Exception
            raise EngineLost(_told(error)) from error

    def _upload(self, arrays: dict[str, np.ndarray]) -> None:
        """Into the buffers of the run before, or new ones where a shape changed: outputs keep the shapes they had."""
        shapes = [array.shape for array in arrays.values()]
        if shapes == self._shapes:
            for name, array in arrays.items():
                self._inputs[name].update_inplace(array)
            return
        self._binding, self._shapes = self._session.io_binding(), shapes
        for name, array in arrays.items():
            self._inputs[name] = self._values.ortvalue_from_numpy(array, "cuda", 0)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for name in self.outputs:
            self._binding.bind_output(name, "cpu")


def load(request: Request, library: Any = None) -> CudaEngine:
    """Open an ONNX file; Unavailable where ONNX Runtime, CUDA or a GPU is not here, or has no memory left.

    library: the module ``onnxruntime``; default: the one that is installed.
    """
    library = library or _library()
    metadata = read_metadata(request.path)
    try:
        session = _session(library, request.path)
    except Exception as error:
        raise Unavailable(_told(error)) from error
    if session.get_providers()[0] != _PROVIDER:
        raise Unavailable("onnxruntime found no CUDA GPU that it can use (nvidia-smi shows the GPU and its driver): "
                          "pip install 'kp_frontend[gpu]' brings CUDA and cuDNN")
    check_graph(request.path, {entry.name: entry.shape for entry in session.get_inputs()}, metadata)
    return CudaEngine(session, library.OrtValue, metadata)


def _library() -> Any:
    """ONNX Runtime with CUDA; Unavailable where it is not installed, or no GPU is here that would want it."""
    open_driver()
    onnxruntime = import_or_refuse("onnxruntime", "gpu")
    if _PROVIDER not in onnxruntime.get_available_providers():
        raise Unavailable("the installed onnxruntime is the one without CUDA: pip uninstall onnxruntime, then "
                          "pip install 'kp_frontend[gpu]'")
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on: CUDA and cuDNN of pip's wheels, which no path names
        onnxruntime.preload_dlls()
    return onnxruntime


def _session(library: Any, path: Path) -> Any:
    """A session with the whole graph on the GPU, or all but the arithmetic of sizes that are not fixed."""
    def opened(strict: str) -> Any:
        options = library.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_cpu_ep_fallback", strict)
        return library.InferenceSession(
            str(path), options, providers=[(_PROVIDER, _SETTINGS)],
            enable_fallback=0,  # else Python goes on with the CPU alone
        )

    try:
        return opened("1")
    except Exception as error:
        if _ON_CPU not in str(error):
            raise
    return opened("0")


def _told(error: Exception) -> str:
    """One line of what onnxruntime said, and what to do."""
    text = " ".join(str(error).split())
    if any(sign in text for sign in _FULL):
        return f"out of GPU memory: use smaller images or a smaller top_k, or end what else runs on the GPU ({text})"
    return f"CUDA through onnxruntime failed ({text})"
