"""libcuda and TensorRT's runtime without a GPU: memory of the host, streams that run or record what they are given."""

from __future__ import annotations

import ctypes
import types
from collections import Counter

import numpy as np

OUT_OF_MEMORY, NO_DEVICE, LAUNCH_FAILED, CAPTURE_UNSUPPORTED = 2, 100, 719, 900
_NAMES = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 100: b"CUDA_ERROR_NO_DEVICE", 719: b"CUDA_ERROR_LAUNCH_FAILED",
          900: b"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}


def _value(argument):
    return getattr(argument, "value", argument)


class FakeCuda:
    """libcuda.  calls: names in order.  fails: name → code that it answers with from now on."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}
        self.memory: dict[int, ctypes.Array] = {}
        self.graphs: dict[int, list] = {}
        self.recording: list | None = None
        self.handles = iter(range(1, 1 << 30))

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = _Function(self, name)
        setattr(self, name, function)
        return function

    def counts(self) -> Counter:
        return Counter(self.calls)

    def submit(self, work) -> None:
        """Run, or record, what is put on the stream."""
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    def copy(self, target: int, source: int, size: int) -> None:
        for address in (target, source):
            assert address in self.memory, "memory that is not, or no more, allocated"
            assert size <= len(self.memory[address])
        ctypes.memmove(target, source, size)

    def allocate(self, out, size) -> None:
        block = (ctypes.c_uint8 * _value(size))()
        out._obj.value = ctypes.addressof(block)
        self.memory[ctypes.addressof(block)] = block

    def do(self, name, arguments) -> None:
        """What a call does beside its answer."""
        if name in ("cuMemAlloc_v2", "cuMemHostAlloc"):
            self.allocate(*arguments[:2])
        elif name in ("cuMemFree_v2", "cuMemFreeHost"):
            del self.memory[_value(arguments[0])]
        elif name in ("cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"):
            self.submit(lambda: self.copy(*map(_value, arguments[:3])))
        elif name == "cuStreamBeginCapture_v2":
            self.recording = []
        elif name == "cuStreamEndCapture":
            arguments[1]._obj.value = next(self.handles)
            self.graphs[arguments[1]._obj.value], self.recording = self.recording, None
        elif name == "cuGraphInstantiateWithFlags":
            arguments[0]._obj.value = next(self.handles)
            self.graphs[arguments[0]._obj.value] = self.graphs[_value(arguments[1])]
        elif name in ("cuGraphDestroy", "cuGraphExecDestroy"):
            del self.graphs[_value(arguments[0])]
        elif name == "cuGraphLaunch":
            for work in self.graphs[_value(arguments[0])]:
                work()
        elif name == "cuDeviceGetName":
            arguments[0].value = b"Fake GPU"
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
        elif name == "cuDriverGetVersion":
            arguments[0]._obj.value = 12060
        elif name == "cuGetErrorName":
            arguments[1]._obj.value = _NAMES[arguments[0]]
        elif name in ("cuStreamCreate", "cuDevicePrimaryCtxRetain"):
            arguments[0]._obj.value = next(self.handles)


class _Function:
    argtypes = None

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        self._cuda, self._name = cuda, name

    def __call__(self, *arguments) -> int:
        assert self.argtypes is not None
        assert len(arguments) == len(self.argtypes), self._name
        self._cuda.calls.append(self._name)
        code = self._cuda.fails.get(self._name, 0)
        if not code or self._name == "cuStreamEndCapture":
            self._cuda.do(self._name, arguments)
        return code


class FakeEngine:
    """A plan of `full_model`: scores are the image, descriptors four times its 8×8 means."""

    num_io_tensors = 3
    _NAMES = ("image", "scores", "descriptors")

    def __init__(self, trt) -> None:
        self._trt = trt

    def get_tensor_name(self, index):
        return self._NAMES[index]

    def get_tensor_mode(self, name):
        return self._trt.TensorIOMode.INPUT if name == "image" else self._trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name="FLOAT" if name != "descriptors" else "HALF")

    def create_execution_context(self):
        return FakeContext(self._trt)


class FakeContext:
    """Takes images up to 128×128."""

    def __init__(self, trt) -> None:
        self._trt, self._shape, self._places = trt, (), {}

    def set_input_shape(self, name, shape):
        self._shape = tuple(shape)
        return max(shape[2:]) <= 128

    def get_tensor_shape(self, name):
        height, width = self._shape[2:]
        return self._shape if name == "scores" else (1, 4, height // 8, width // 8)

    def set_tensor_address(self, name, address):
        self._places[name] = address

    def execute_async_v3(self, stream):
        if self._trt.refuses:
            self._trt.say("ERROR", self._trt.refuses)
            return False
        shape, places = self._shape, dict(self._places)
        self._trt.cuda.submit(lambda: self._compute(shape, places))
        return True

    def _compute(self, shape, places) -> None:
        _, _, height, width = shape
        image = self._at(places["image"], np.float32, shape)
        self._at(places["scores"], np.float32, shape)[:] = image
        means = image.reshape(1, height // 8, 8, width // 8, 8).mean((2, 4))
        self._at(places["descriptors"], np.float16, (1, 4, height // 8, width // 8))[:] = 4 * means

    def _at(self, address, dtype, shape):
        count = int(np.prod(shape))
        block = self._trt.cuda.memory[address]
        return np.frombuffer(block, dtype, count).reshape(shape)


class FakeTensorrt(types.ModuleType):
    """TensorRT's module without its builder.

    refuses: what it says instead of running.  takes: plans that it loads; rejects: what it says of those it does not.
    """

    rejects = "The engine plan file is not compatible with this version of TensorRT"

    class ILogger:
        def __init__(self) -> None:
            pass

    class TensorIOMode:
        INPUT, OUTPUT = "INPUT", "OUTPUT"

    def __init__(self, cuda: FakeCuda, version: str = "10.13.0") -> None:
        super().__init__("tensorrt")
        self.__version__, self.cuda, self.refuses, self.takes = version, cuda, "", True

    def say(self, severity: str, text: str) -> None:
        self.logger.log(types.SimpleNamespace(name=severity), text)

    def Runtime(self, logger):
        self.logger = logger
        return self

    def deserialize_cuda_engine(self, plan):
        if not self.takes:
            self.say("ERROR", self.rejects)
        return FakeEngine(self) if self.takes else None
