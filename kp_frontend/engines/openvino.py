"""Networks on a CPU through OpenVINO: the fastest there, above all for int8."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from kp_frontend.engines.base import Request, Unavailable, check_graph, import_or_refuse
from kp_frontend.model_file import ModelMetadata, read_metadata
from kp_frontend.per_thread import PerThread

_PRECISION = "INFERENCE_PRECISION_HINT"
_SIZES = 4  # image sizes that stay compiled


class OpenVinoEngine:
    """A graph, compiled anew for each size of image that comes; see `engines.Engine`.

    shortened: whether it computes in bfloat16.
    A size that is compiled in is 10 to 20 % faster than one that is left open, and takes 0.1 s of a core (int8: 0.3 s).
    Each thread compiles its own, since runs of one compiled graph wait for each other. They share one pool of workers:
    a thread that runs alone has all cores for its layers, of two each does most of its layers itself.
    """

    concurrent = True

    def __init__(self, core, graph, settings: dict[str, Any], metadata: ModelMetadata) -> None:
        self._core, self._graph, self._settings = core, graph, settings
        self.metadata = metadata
        self.shortened = settings[_PRECISION] == "bf16"
        self.backend = "openvino (CPU, bf16)" if self.shortened else "openvino (CPU)"
        self.outputs = tuple(output.any_name for output in graph.outputs)
        self._cloning = threading.Lock()
        self._requests: PerThread[OrderedDict[tuple[int, ...], Any]] = PerThread(OrderedDict)

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`."""
        import openvino

        request = self._request(image.shape)
        # Read where they lie, so they must be whole, outlive the run and, OpenVINO insists, be writable.
        given = {"image": image, **points}
        arrays = {name: np.require(values, requirements=("C", "W")) for name, values in given.items()}
        for name, array in arrays.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
        return {name: request.get_tensor(name).data for name in self.outputs}

    def _request(self, shape: tuple[int, ...]) -> Any:
        """This thread's request for images of `shape`, compiled where it is new."""
        requests = self._requests.get()
        if shape not in requests:
            with self._cloning:  # of one graph by several threads at once is nowhere promised
                graph = self._graph.clone()
            try:
                graph.reshape({"image": list(shape)})
                compiled = self._core.compile_model(graph, "CPU", self._settings)
            except RuntimeError as error:
                raise Unavailable(f"OpenVINO cannot compile the graph ({_last_line(error)})") from error
            requests[shape] = compiled.create_infer_request()
            if len(requests) > _SIZES:
                requests.popitem(last=False)
        requests.move_to_end(shape)
        return requests[shape]


def load(request: Request) -> OpenVinoEngine:
    """Open an ONNX file; Unavailable where OpenVINO is not here or cannot read the graph."""
    openvino = import_or_refuse("openvino", "openvino")
    metadata = read_metadata(request.path)
    core = openvino.Core()
    try:
        graph = core.read_model(request.path)
    except RuntimeError as error:
        raise Unavailable(f"OpenVINO cannot read {request.path.name} ({_last_line(error)})") from error
    shapes = {entry.any_name: [_length(size) for size in entry.partial_shape] for entry in graph.inputs}
    check_graph(request.path, shapes, metadata)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": request.cpu_threads,
        "ENABLE_CPU_PINNING": False,  # two nodes would pin their threads to the same cores
        _PRECISION: _precision(request, metadata, core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }
    return OpenVinoEngine(core, graph, settings, metadata)


def _precision(request: Request, metadata: ModelMetadata, capabilities: Sequence[str]) -> str:
    """What the CPU shall compute in: OpenVINO would take bfloat16 for every file where it can.

    It is up to twice as fast as float32 and as good as fp16 files are meant to be for networks that are sure of their
    keypoints (`choice` looks whether this one is), but for the pixels that a sparse graph computes: it has no numbers
    between 256 and 258.
    """
    able = "BF16" in capabilities and not request.exact
    half = metadata.precision == "fp16" and metadata.profile == "dense" and able
    return "bf16" if half else "f32"


def _length(size) -> int | str:
    return "?" if size.is_dynamic else size.get_length()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
