"""TensorRT for a node: its engine is built in a process of its own, while another one runs the network."""

from __future__ import annotations

import threading
from typing import Protocol

from kp_frontend.engines import LiveEngine, open_engine
from kp_frontend.engines.base import Request, Unavailable
from kp_frontend.engines.cuda_driver import Driver, open_driver
from kp_frontend.engines.tensorrt.cache import BuildOptions, build_engine, find
from kp_frontend.engines.tensorrt.library import import_library, target_of
from kp_frontend.engines.tensorrt.sizes import Size, choose_sizes
from kp_frontend.errors import InputError
from kp_frontend.extractors import EXTRACTORS, TRACKERS, parse_spec
from kp_frontend.isolated import call_isolated

_RUNS = "tensorrt"


class Reports(Protocol):
    """What is told how it goes: a node's Diagnostics."""

    def fact(self, **facts: object) -> None: ...
    def error(self, text: str) -> None: ...


def first_backend(features: str, backend: str) -> str:
    """What a node opens its model with: ``tensorrt`` is not waited for, the next best runs until it is built.

    features: spec, which may need no network.  Raises Unavailable where TensorRT is asked for and cannot run here.
    """
    if backend != "tensorrt" or parse_spec(features)[0] in (*EXTRACTORS, *TRACKERS):
        return backend
    try:
        open_driver()
        import_library()
    except Unavailable as error:
        raise Unavailable(f"{features} cannot be run by {backend}: {error}") from error
    return "auto"


def watch_engine(engine: LiveEngine | None, backend: str, reports: Reports) -> EngineBuild | None:
    """What brings a node's network onto TensorRT, where its parameter `backend` leaves that open and there is a GPU."""
    request = engine.request if engine is not None else None
    if engine is None or request is None or request.path.suffix != ".onnx" or backend not in ("auto", "tensorrt"):
        return None
    try:
        driver = open_driver()
    except Unavailable as error:
        reports.fact(engine_build=f"none: {error}")
        return None
    return EngineBuild(engine, request, driver, reports)


class EngineBuild:
    """Brings a network onto TensorRT for the size of the images that come, without holding one up.

    engine: what runs the network, opened with `request`; from the swap on, TensorRT.  driver: of the GPU.
    """

    def __init__(self, engine: LiveEngine, request: Request, driver: Driver, reports: Reports) -> None:
        self._engine, self._request, self._driver, self._reports = engine, request, driver, reports
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._size: Size = (0, 0)
        self._thread: threading.Thread | None = None

    def consider(self, height: int, width: int) -> None:
        """The next image is of this size; before it is run."""
        size = height, width
        if size == self._size or self._engine.fallbacks:
            return
        with self._lock:
            if not self._engine.takes(height, width):
                self._engine.replace(self._open("auto", size))
            self._size = size
            if self._thread is None and not self._engine.backend.startswith(_RUNS):
                self._thread = threading.Thread(target=self._run, name="engine_build", daemon=True)
                self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Give up what is being built. Waits up to `timeout` seconds."""
        self._stop.set()
        thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        """Until there is an engine for the size of the newest image, or none can be had."""
        while not self._stop.is_set():
            size = self._size
            said = self._bring(size)
            with self._lock:
                if size == self._size or self._stop.is_set():
                    self._thread = None
                    self._reports.fact(engine_build=said)
                    return

    def _bring(self, size: Size) -> str:
        """Build and swap; what diagnostics say of it."""
        try:
            trt = import_library()
        except InputError as error:
            return f"none: {error}"
        try:
            self._driver.use()
            sizes, path = choose_sizes(self._engine.metadata, size), self._request.path
            if find(path, sizes.usual, target_of(trt, self._driver)) is None:
                self._reports.fact(engine_build="0 %")
                call_isolated(build_engine, path, BuildOptions(size), progress=self._tell, stop=self._stop)
            better = self._open("tensorrt", size)
            with self._lock:
                if self._engine.fallbacks:
                    return "given up: another engine was lost meanwhile"
                if size == self._size:
                    self._engine.replace(better)
        except Exception as error:  # the node goes on, whatever TensorRT makes of it
            if not self._stop.is_set():
                self._reports.error(f"TensorRT engine of {self._engine.name} not built: {error}")
            return f"failed: {error}"
        return "done"

    def _tell(self, done: int, total: int) -> None:
        self._reports.fact(engine_build=f"{100 * done // total} %")

    def _open(self, backend: str, size: Size) -> LiveEngine:
        return open_engine(self._request.path, backend, self._request.threads, height=size[0], width=size[1],
                           build=False)
