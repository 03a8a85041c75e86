"""TensorRT's Python module: which one is here, what it says, and what its engines are bound to."""

from __future__ import annotations

import importlib
import logging
import platform
from collections import deque
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from kp_frontend.engines.base import Unavailable
from kp_frontend.engines.cuda_driver import Driver

_LOG = logging.getLogger(__name__)
LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""Modules of one API; the second is for desktop GPUs, and builds without any."""


@dataclass(frozen=True)
class Target:
    """What an engine is bound to: it runs with the TensorRT, and on the GPU, that it was built with and on.

    library: of LIBRARIES.  gpu, sm, cuda, driver: see ``cuda_driver.Gpu``.  architecture: of the CPU.
    """

    library: str
    version: str
    gpu: str
    sm: str
    cuda: str
    driver: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.library} {self.version} on {self.gpu} (SM {self.sm}, {self.architecture})"

    def runs(self, other: Target) -> bool:
        """Whether an engine for `other` may be tried here; another driver need not mean another engine."""
        return all(getattr(self, name) == getattr(other, name) for name in asdict(self).keys() - {"cuda", "driver"})


def import_library() -> Any:
    """TensorRT's module.  Raises Unavailable where there is none; only after `open_driver`: some crash without GPU."""
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            if not isinstance(error, ModuleNotFoundError):
                _LOG.warning("%s is installed but cannot be loaded: %s", name, error)
    raise Unavailable("TensorRT is not installed: pip install 'kp_frontend[trt]'; on a Jetson it comes with JetPack "
                      "(apt install python3-libnvinfer, and a virtual environment with --system-site-packages)")


def target_of(trt: Any, driver: Driver) -> Target:
    """What engines of the module `trt` are bound to on this machine."""
    gpu = driver.gpu
    return Target(trt.__name__, trt.__version__, gpu.name, gpu.sm, gpu.cuda, gpu.driver, platform.machine())


@cache
def logger_of(trt: Any) -> Any:
    """The one logger of the module `trt`: errors are kept for `last_error`, warnings go to our log for debugging."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, text: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.errors.append(" ".join(text.split()))
            if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                _LOG.debug("TensorRT: %s", text)

    return Log()


def last_error(trt: Any, what: str = "") -> str:
    """What TensorRT has said of its last failure, the line with `what` first; forgotten then."""
    said = sorted(logger_of(trt).errors, key=lambda text: what not in text)
    forget_errors(trt)
    return said[0] if said else "TensorRT gives no reason"


def forget_errors(trt: Any) -> None:
    """What TensorRT has said up to now has no consequence."""
    logger_of(trt).errors.clear()


def out_of_memory(reason: str) -> bool:
    """Whether TensorRT's `reason` is that the GPU has no memory left."""
    return any(words in reason.lower() for words in ("out of memory", "outofmemory", "out_of_memory"))
