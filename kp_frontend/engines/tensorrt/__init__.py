"""Networks on an NVIDIA GPU through TensorRT: engines from the cache, built when asked for, or from a file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from kp_frontend.engines.base import Request, Unavailable
from kp_frontend.engines.cuda_driver import CudaError, Driver, open_driver
from kp_frontend.engines.tensorrt.cache import BuildOptions, build_engine, find
from kp_frontend.engines.tensorrt.engine import TensorrtEngine
from kp_frontend.engines.tensorrt.library import Target, import_library, target_of
from kp_frontend.engines.tensorrt.plan_file import BUILD, read_plan
from kp_frontend.engines.tensorrt.progress import TOTAL
from kp_frontend.engines.tensorrt.sizes import choose_sizes
from kp_frontend.errors import InputError
from kp_frontend.model_file import read_metadata
from kp_frontend.progress import Progress

_LOG = logging.getLogger(__name__)
_TOLD = 5  # times that a build says how far it is


def load(request: Request, trt: Any = None, driver: Driver | None = None) -> TensorrtEngine:
    """Open an ``.engine`` file, or the engine of an ONNX file, which is built where `request` lets it.

    trt, driver: TensorRT's module and CUDA; default: this machine's.
    Raises Unavailable where there is no GPU, no TensorRT or no engine yet, InputError for a file that is not ours.
    """
    driver = driver or open_driver()
    try:
        driver.use()
    except CudaError as error:
        raise Unavailable(f"the GPU is lost ({error}); nvidia-smi shows how it is") from error
    trt = trt or import_library()
    target = target_of(trt, driver)
    if request.path.suffix == ".engine":
        return _open_file(request.path, target, trt, driver)
    sizes = choose_sizes(read_metadata(request.path), (request.height, request.width))
    place = find(request.path, sizes.usual if sizes.fixed else (0, 0), target)
    if place is not None:
        try:
            return _open(place, trt, driver)
        except Unavailable:  # the GPU's fault, or its memory's: the engine is good
            raise
        except InputError as error:
            _LOG.warning("%s", error)
            place.unlink(missing_ok=True)
    if not request.build:
        size = f" --height {request.height} --width {request.width}" if request.height else ""
        raise Unavailable(f"no engine yet for this model, size and GPU: python -m kp_training build_engine "
                          f"{request.path}{size}")
    _LOG.info("%s: building its TensorRT engine, once, which can take minutes", request.path.name)
    options = BuildOptions((request.height, request.width))
    return _open(build_engine(request.path, options, _tell(request.path), trt=trt, target=target), trt, driver)


def _open(path: Path, trt: Any, driver: Driver) -> TensorrtEngine:
    """The engine of an ONNX file, which it stands for: its metadata is that file's."""
    header, plan = read_plan(path)
    return TensorrtEngine(trt, driver, header, plan, header.recipe.metadata)


def _open_file(path: Path, target: Target, trt: Any, driver: Driver) -> TensorrtEngine:
    """An engine that stands for itself: a model of the size that it was built for."""
    header, plan = read_plan(path)
    recipe = header.recipe
    if not target.runs(recipe.target):
        raise InputError(f"engine {path} was built with {recipe.target}, but here is {target}; {BUILD} (from "
                         f"{header.model})")
    height, width = recipe.sizes.usual if recipe.sizes.fixed else (0, 0)
    return TensorrtEngine(trt, driver, header, plan, replace(recipe.metadata, height=height, width=width))


def _tell(path: Path) -> Progress:
    """Says in the log how far a build is, a few times."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done * _TOLD // total > told:
            told = done * _TOLD // total
            _LOG.info("%s: engine %d %% built", path.name, 100 * done // TOTAL)

    return tell
