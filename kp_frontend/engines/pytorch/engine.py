"""A network on a device: call by call, and on a GPU as one CUDA graph as soon as a size comes back."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kp_frontend.engines.base import EngineLost, Request, Unavailable, check_graph
from kp_frontend.engines.pytorch.graph import Call, Graph, plan, read_graph, run
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata, read_metadata

Arrays = Mapping[str, np.ndarray]
_LOG = logging.getLogger(__name__)


class Network:
    """A graph whose weights are on `device`, planned anew for each size that comes.

    Called with the inputs by name, on the device, it gives the outputs, float32, in the graph's order.
    """

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.graph, self.device = graph, device
        self._weights: dict[str, Tensor] = {}
        self._sizes: dict[str, torch.Size] = {}
        self._calls: list[Call] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        sizes = {name: values.shape for name, values in inputs.items()}
        if sizes != self._sizes:
            self._calls, self._sizes = plan(self.graph, inputs, self._place), sizes
        values = run(self._calls, dict(inputs))
        return [values[name].float() for name in self.graph.outputs]

    def _place(self, name: str, values: Tensor) -> Tensor:
        """`values` on the device: weights once, channels last, which tensor cores read as it lies."""
        if name not in self.graph.known:
            return values.to(self.device)
        if name not in self._weights:
            layout = torch.channels_last if values.ndim == 4 else torch.preserve_format
            self._weights[name] = values.to(self.device, memory_format=layout)
        return self._weights[name]


class Capture:
    """A network as one CUDA graph for inputs of one size, between buffers that copies need not wait for."""

    def __init__(self, network: Network, inputs: Arrays) -> None:
        self._sent = {name: _tensor(values).clone().pin_memory() for name, values in inputs.items()}
        self._inputs = {name: values.to(network.device) for name, values in self._sent.items()}
        self._stream, self._graph = torch.cuda.Stream(network.device), torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            for _ in range(3):  # libraries choose their kernels and take their memory, which a capture may not
                network(self._inputs)
        self._stream.synchronize()
        # thread_local: other threads of a node may use the GPU meanwhile.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._outputs = [values.contiguous() for values in network(self._inputs)]
        self._received = [torch.empty(values.shape, dtype=values.dtype, pin_memory=True) for values in self._outputs]

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """The outputs; they hold until the next run."""
        for name, values in inputs.items():
            np.copyto(self._sent[name].numpy(), values)
        with torch.cuda.stream(self._stream):
            for name, sent in self._sent.items():
                self._inputs[name].copy_(sent, non_blocking=True)
            self._graph.replay()
            for received, computed in zip(self._received, self._outputs):
                received.copy_(computed, non_blocking=True)
        self._stream.synchronize()
        return [received.numpy() for received in self._received]


class PyTorchEngine:
    """A network on the first GPU, or on the CPU where there is none; see `engines.Engine`."""

    concurrent = False

    def __init__(self, graph: Graph, metadata: ModelMetadata, device: torch.device) -> None:
        self.metadata, self.outputs = metadata, graph.outputs
        self.backend = f"pytorch ({'CUDA' if device.type == 'cuda' else 'CPU'})"
        self._network, self._device = Network(graph, device), device
        self._sizes: list[tuple[int, ...]] = []
        self._capture: Capture | None = None
        self._captures = True  # until one fails

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`."""
        with _gpu_errors(EngineLost, self._device), torch.inference_mode(), _exact():
            return dict(zip(self.outputs, self._run({"image": image, **points})))

    def warm_up(self, height: int, width: int) -> None:
        """Be ready for images of this size; Unavailable where the GPU is not."""
        metadata = self.metadata
        image = np.zeros((1, metadata.channels, height, width), metadata.input_dtype)
        with _gpu_errors(Unavailable, self._device), torch.inference_mode(), _exact():
            for _ in range(2):
                self._run({"image": image})

    def _run(self, inputs: Arrays) -> list[np.ndarray]:
        sizes = [values.shape for values in inputs.values()]
        if sizes != self._sizes:
            # A size may come but once: where points are an input, their number changes with every image.
            self._sizes, self._capture = sizes, None
        elif self._capture is None and self._captures and self._device.type == "cuda":
            self._capture = self._captured(inputs)
        if self._capture is not None:
            return self._capture.run(inputs)
        results = self._network({name: _tensor(values).to(self._device) for name, values in inputs.items()})
        return [values.cpu().contiguous().numpy() for values in results]

    def _captured(self, inputs: Arrays) -> Capture | None:
        """The network as a CUDA graph; None, and so slower, where that cannot be."""
        try:
            with torch.cuda.stream(torch.cuda.current_stream(self._device)):  # a capture that fails leaves another one
                return Capture(self._network, inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a GPU that is lost fails in the next call, too
            self._captures = False
            _LOG.warning("%s runs without CUDA graph (%s)", self.backend, str(error).strip().partition("\n")[0])
            return None


def _tensor(values: np.ndarray) -> Tensor:
    """The same memory; a copy where that may not be written to, which PyTorch warns of."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())


@contextmanager
def _gpu_errors(kind: type[Exception], device: torch.device) -> Iterator[None]:
    """Raise what PyTorch says of the GPU as `kind`."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise kind("no GPU memory is left for PyTorch; use smaller images, end other programs on the GPU, or take "
                   "another backend") from error
    except RuntimeError as error:  # all that it knows of CUDA and cuDNN
        if device.type == "cpu":
            raise
        reason = str(error).strip().partition("\n")[0]
        raise kind(f"PyTorch cannot use the GPU ({reason}); look at nvidia-smi, or take another backend") from error


def _exact() -> Any:
    """32-bit networks in 32 bits (not TF32, which moves points), by the fastest kernels for the size."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)


def open_file(request: Request) -> PyTorchEngine:
    """The engine of an ONNX file; see `load`."""
    import onnx
    from google.protobuf.message import DecodeError

    metadata = read_metadata(request.path)
    try:
        model = onnx.load(str(request.path))
    except DecodeError as error:
        raise InputError(f"model {request.path} is not an ONNX file that can be read ({error})") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graph = read_graph(model, half=device.type == "cuda")
    check_graph(request.path, {entry.name: _shape(entry) for entry in model.graph.input if entry.name in graph.inputs},
                metadata)
    if device.type == "cpu":
        torch.set_num_threads(request.cpu_threads)
    engine = PyTorchEngine(graph, metadata, device)
    height, width = request.height or metadata.height, request.width or metadata.width
    if device.type == "cuda" and height and width and graph.inputs == ("image",):
        engine.warm_up(*metadata.padded(height, width))
    return engine


def _shape(entry: Any) -> list[int | str]:
    return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param
            for axis in entry.type.tensor_type.shape.dim]
