"""The few calls of the CUDA driver that an engine needs, through ctypes on the library that every GPU machine has."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kp_frontend.engines.base import Unavailable

_LIBRARY = "libcuda.so.1"
_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_OUT_OF_MEMORY = 2
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_…
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: what else the process does with CUDA does not end the capture
_HANDLE = POINTER(c_void_p)
# As cuda.h declares them; where the ABI has two, the second.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_uint64),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_HANDLE, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
}


class CudaError(RuntimeError):
    """A call of the driver that failed."""


class OutOfMemory(CudaError):
    """The GPU, or pinned memory of the host, has no room left."""


@dataclass(frozen=True)
class Gpu:
    """name: of the device.  sm: its compute capability (``8.7``).  cuda: version that the driver speaks (``12.6``).

    driver: first line of what the kernel module says of itself, "" where it says nothing.
    """

    name: str
    sm: str
    cuda: str
    driver: str


@cache
def open_driver() -> Driver:
    """The driver of this process.  Raises Unavailable where there is no driver or no GPU."""
    try:
        return Driver(ctypes.CDLL(_LIBRARY))
    except OSError:
        raise Unavailable(f"no NVIDIA GPU here: its driver ({_LIBRARY}) is not installed") from None
    except AttributeError as error:
        raise Unavailable(f"the NVIDIA driver is too old ({error}); expected one for CUDA 11.4 or later") from None
    except CudaError as error:
        raise Unavailable(f"no NVIDIA GPU that can be used here: {error}") from None


class Driver:
    """CUDA on device 0 (``CUDA_VISIBLE_DEVICES`` chooses which that is), in the context that all libraries share.

    library: what has the functions of libcuda.  Raises CudaError, as all that is here, where a call fails.
    """

    def __init__(self, library: Any) -> None:
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
        self._library = library
        device, self._context = c_int(), c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), 0)
        self.gpu = self._describe(device.value)
        self.call("cuDevicePrimaryCtxRetain", byref(self._context), device.value)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver."""
        code = getattr(self._library, name)(*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorName(code, byref(text))
            kind = OutOfMemory if code == _OUT_OF_MEMORY else CudaError
            raise kind(f"{name}: {(text.value or b'unknown error').decode()} ({code})")

    def use(self) -> None:
        """Make the context this thread's; before anything else in a thread."""
        self.call("cuCtxSetCurrent", self._context)

    def release(self, name: str, handle: int) -> None:
        """Free what `handle` names; a GPU that is gone has freed it itself."""
        with suppress(CudaError):
            self.use()
            self.call(name, handle)

    def _describe(self, device: int) -> Gpu:
        name, version = ctypes.create_string_buffer(256), c_int()
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDriverGetVersion", byref(version))
        major, minor = c_int(), c_int()
        self.call("cuDeviceGetAttribute", byref(major), _MAJOR, device)
        self.call("cuDeviceGetAttribute", byref(minor), _MINOR, device)
        driver = _DRIVER_FILE.read_text().partition("\n")[0] if _DRIVER_FILE.is_file() else ""
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Gpu(name.value.decode(), f"{major.value}.{minor.value}", cuda, driver)


def _released(owner: object, driver: Driver, name: str, handle: int) -> None:
    """Free `handle` when `owner` is no more; not at exit, when the driver may have gone first."""
    weakref.finalize(owner, driver.release, name, handle).atexit = False


class Buffer:
    """Memory in two places.  device: its address on the GPU.  host: `size` bytes of pinned memory, uint8.

    What of `host` someone still holds outlives the buffer.
    """

    def __init__(self, driver: Driver, size: int) -> None:
        device, host = c_uint64(), c_void_p()
        driver.call("cuMemAlloc_v2", byref(device), size)
        _released(self, driver, "cuMemFree_v2", device.value)
        driver.call("cuMemHostAlloc", byref(host), size, 0)
        self.device, self.address = device.value, host.value or 0
        memory = (ctypes.c_uint8 * size).from_address(self.address)
        _released(memory, driver, "cuMemFreeHost", self.address)
        self.host = np.ctypeslib.as_array(memory)


class Graph:
    """Work that was recorded on a stream, to be launched as one."""

    def __init__(self, driver: Driver, handle: int) -> None:
        self._driver, self._handle = driver, handle
        _released(self, driver, "cuGraphExecDestroy", handle)

    def launch(self, stream: Stream) -> None:
        """Run it on `stream`."""
        self._driver.call("cuGraphLaunch", self._handle, stream.handle)


class Stream:
    """A queue of work on the GPU.  handle: as CUDA's libraries take it."""

    def __init__(self, driver: Driver) -> None:
        handle = c_void_p()
        driver.call("cuStreamCreate", byref(handle), _NON_BLOCKING)
        self._driver, self.handle = driver, handle.value or 0
        _released(self, driver, "cuStreamDestroy_v2", self.handle)

    def upload(self, buffer: Buffer, size: int) -> None:
        """Copy the first `size` bytes of `buffer` to the GPU."""
        self._driver.call("cuMemcpyHtoDAsync_v2", buffer.device, buffer.address, size, self.handle)

    def download(self, buffer: Buffer, size: int) -> None:
        """Copy the first `size` bytes of `buffer` from the GPU."""
        self._driver.call("cuMemcpyDtoHAsync_v2", buffer.address, buffer.device, size, self.handle)

    def synchronize(self) -> None:
        """Wait until all is done."""
        self._driver.call("cuStreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` puts on this stream, without running it."""
        recorded, ready = c_void_p(), c_void_p()
        self._driver.call("cuStreamBeginCapture_v2", self.handle, _RELAXED)
        try:
            work()
        finally:
            self._driver.call("cuStreamEndCapture", self.handle, byref(recorded))
        try:
            self._driver.call("cuGraphInstantiateWithFlags", byref(ready), recorded, 0)
        finally:
            self._driver.release("cuGraphDestroy", recorded.value or 0)
        return Graph(self._driver, ready.value or 0)
