"""A TensorRT plan on the GPU: pinned buffers, and one CUDA graph from upload to download for each size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_frontend.engines.base import EngineLost, Unavailable
from kp_frontend.engines.cuda_driver import Buffer, CudaError, Driver, Graph, OutOfMemory, Stream
from kp_frontend.engines.tensorrt.library import last_error, logger_of, out_of_memory
from kp_frontend.engines.tensorrt.plan_file import Header
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata
from kp_frontend.sparse import model_outputs

_LOG = logging.getLogger(__name__)
# TensorRT's names; its own table to numpy fails with numpy 1.24 and later in version 8.
_TYPES: dict[str, np.dtype] = {"FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16), "UINT8": np.dtype(np.uint8)}
_ADVICE = "close what else uses it, take smaller images, or an engine for a smaller largest size"


@dataclass
class _Tensor:
    """An input or output: its memory, grown when needed, and the part of it that this size of image takes."""

    dtype: np.dtype
    buffer: Buffer
    view: np.ndarray


class TensorrtEngine:
    """A loaded plan; see `engines.Engine`.

    trt: TensorRT's module.  header, plan: of an engine file for this machine.  metadata: of the model.
    sizes: of the images that it runs.
    Raises InputError where TensorRT does not take the plan, Unavailable where the GPU is lost or has not memory enough.
    """

    concurrent = False

    def __init__(self, trt: Any, driver: Driver, header: Header, plan: bytes, metadata: ModelMetadata) -> None:
        self._trt, self._driver, self._header, self.metadata = trt, driver, header, metadata
        self.backend, self.sizes = f"{trt.__name__} ({driver.gpu.name})", header.recipe.sizes
        try:
            driver.use()
            self._stream = Stream(driver)
            self._runtime = trt.Runtime(logger_of(trt))
            self._engine = self._made(self._runtime.deserialize_cuda_engine(plan), InputError)
            self._context = self._made(self._engine.create_execution_context())
            names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
            self._tensors = {name: self._tensor(name) for name in names}
        except CudaError as error:
            raise self._unavailable(str(error)) from error
        given = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = tuple(name for name in names if name in given)
        order = model_outputs(metadata)  # the model file's, which TensorRT need not keep
        self.outputs = tuple(sorted((name for name in names if name not in given),
                                    key=lambda name: order.index(name) if name in order else len(order)))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._graph: Graph | None = None
        self._runs = 0

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`; Unavailable for a size that it was not built for."""
        inputs = {"image": image, **points}
        try:
            self._driver.use()
            shapes = {name: values.shape for name, values in inputs.items()}
            if shapes != self._shapes:
                self._bind(shapes)
            for name, values in inputs.items():
                np.copyto(self._tensors[name].view, values)
            self._execute()
        except OutOfMemory as error:
            raise EngineLost(f"the GPU has no memory left for {self._said(inputs)} ({error}): {_ADVICE}") from error
        except CudaError as error:
            raise EngineLost(f"{self.backend}: {error}") from error
        return {name: self._tensors[name].view.astype(np.float32, copy=False) for name in self.outputs}

    def _execute(self) -> None:
        """Upload, network, download.

        The first run of a size sets TensorRT up for it, the second is recorded, all that follow are launched as one.
        """
        if self._runs == 1:
            self._graph = self._record()
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._enqueue()
        self._stream.synchronize()
        self._runs += 1

    def _enqueue(self) -> None:
        for name in self.inputs:
            self._stream.upload(self._tensors[name].buffer, self._tensors[name].view.nbytes)
        if not self._context.execute_async_v3(self._stream.handle):
            reason = last_error(self._trt)
            raise (OutOfMemory if out_of_memory(reason) else CudaError)(reason)
        for name in self.outputs:
            self._stream.download(self._tensors[name].buffer, self._tensors[name].view.nbytes)

    def _record(self) -> Graph | None:
        """The work of a run as a graph; None, and so a little slower, where TensorRT has work that cannot be one."""
        try:
            return self._stream.capture(self._enqueue)
        except CudaError as error:
            _LOG.info("%s runs without CUDA graph (%s)", self._header.model, error)
            return None

    def _bind(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Make everything ready for inputs of `shapes`."""
        self._forget()
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                sizes = self._header.recipe.sizes
                raise Unavailable(f"{name} is {'×'.join(map(str, shape))}, but the engine of {self._header.model} was "
                                  f"built for {sizes}; build another with build_engine ({last_error(self._trt, name)})")
        for name, tensor in self._tensors.items():
            shape = tuple(shapes[name] if name in shapes else self._context.get_tensor_shape(name))
            size = int(np.prod(shape)) * tensor.dtype.itemsize
            if size > len(tensor.buffer.host):
                tensor.buffer = Buffer(self._driver, size)
            tensor.view = tensor.buffer.host[:size].view(tensor.dtype).reshape(shape)
            self._context.set_tensor_address(name, tensor.buffer.device)
        self._shapes = dict(shapes)

    def _forget(self) -> None:
        """No size is bound."""
        self._shapes, self._graph, self._runs = {}, None, 0

    def _tensor(self, name: str) -> _Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise Unavailable(f"{self._header.model}: TensorRT gives {name} as {kind}; expected one of "
                              f"{', '.join(_TYPES)}: export it again")
        buffer = Buffer(self._driver, _TYPES[kind].itemsize)
        return _Tensor(_TYPES[kind], buffer, buffer.host.view(_TYPES[kind]))

    def _made(self, part: Any, refused: type[InputError] = Unavailable) -> Any:
        """`part`, where TensorRT gave one; `refused`, where neither the GPU nor its memory is to blame."""
        if part is None:
            self._stream.synchronize()  # a GPU that is gone says so
            reason = last_error(self._trt, "emory")
            raise self._unavailable(reason, Unavailable if out_of_memory(reason) else refused)
        return part

    def _unavailable(self, reason: str, kind: type[InputError] = Unavailable) -> InputError:
        advice = _ADVICE if out_of_memory(reason) else "build it anew with build_engine"
        return kind(f"the engine of {self._header.model} cannot be loaded ({reason}): {advice}")

    def _said(self, inputs: Mapping[str, np.ndarray]) -> str:
        height, width = inputs["image"].shape[2:]
        return f"{self._header.model} at {width}×{height}"
