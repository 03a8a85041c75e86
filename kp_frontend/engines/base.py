"""What an engine is, and how one is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from kp_frontend.cores import usable_cores
from kp_frontend.decoding import further_inputs
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata

Backend = Literal["auto", "tensorrt", "cuda", "openvino", "onnxruntime", "pytorch"]


class Unavailable(InputError):
    """A backend that cannot run here, or not this file: the message says why, and what to install or do."""


class EngineLost(RuntimeError):
    """An engine that ran and runs no more (the GPU vanished, or has no memory left)."""


@dataclass(frozen=True)
class Request:
    """What is to be run, and where.

    path: the model file.  threads: of a CPU backend, 0 = one a core.
    height, width: of the input that is expected, where it is known; 0 = any size.
    build: whether an engine that must be built first, for minutes, may be built now.
    exact: whether a backend that would take fewer bits than the file's own (see `openvino`) must not.
    """

    path: Path
    threads: int = 0
    height: int = 0
    width: int = 0
    build: bool = True
    exact: bool = False

    @property
    def cpu_threads(self) -> int:
        """Threads of a CPU backend."""
        return self.threads or usable_cores()


class Engine(Protocol):
    """One loaded network.

    backend: what runs it.  metadata: what the model file says of itself.  outputs: names of the arrays it gives.
    concurrent: whether several threads may run it at once.
    """

    @property
    def backend(self) -> str: ...
    @property
    def metadata(self) -> ModelMetadata: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def concurrent(self) -> bool: ...

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, float32, for an image 1×C×H×W of ``metadata.input_dtype`` (float32 in [0, 1], or uint8).

        H and W are multiples of ``metadata.size_multiple``; LiveEngine asks for that by `check_input`, the others take
        it as it is. The arrays are the engine's own and hold until the same thread's next run: who keeps them, copies
        them.
        points: what the model takes beside it (``decoding.further_inputs``, in that order), at least one point:
        keypoints 1×N×2 float32, pixels of `image`; descriptors 1×N×d float32.
        Raises EngineLost where what it ran on is gone.
        """
        ...


def import_or_refuse(name: str, extra: str) -> Any:
    """The library `name`, which `extra` of our package brings; Unavailable where it is missing, or broken."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever a library raises that does not fit this system
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise Unavailable(f"not installed: pip install 'kp_frontend[{extra}]'") from None
        raise Unavailable(f"{name} is installed but cannot be loaded ({' '.join(str(error).split())})") from error


def check_graph(path: Path, inputs: Mapping[str, Sequence], metadata: ModelMetadata) -> None:
    """InputError unless a graph takes what its metadata says.

    inputs: name → shape, in which what is no int is dynamic.
    """
    expected = {"image": 4} | dict.fromkeys(further_inputs(metadata), 3)
    if {name: len(shape) for name, shape in inputs.items()} != expected:
        seen = ", ".join(f"{name} {[*shape]}" for name, shape in inputs.items())
        wanted = ", ".join(["image 1×C×H×W", *(f"{name} 1×N×…" for name in further_inputs(metadata))])
        what = "one input" if len(expected) == 1 else f"{len(expected)} inputs"
        raise InputError(f"model {path} takes {seen}; expected {what}, {wanted}: export it again")
    channels = inputs["image"][1]
    if isinstance(channels, int) and channels != metadata.channels:
        raise InputError(
            f"model {path} was made for {channels} channels, but its metadata says {metadata.color} "
            f"({metadata.channels}): export it again"
        )


def check_input(image: np.ndarray, metadata: ModelMetadata) -> None:
    """InputError unless `image` is 1×C×H×W as a model of `metadata` takes it."""
    multiple, fixed = metadata.size_multiple, (metadata.height, metadata.width)
    if image.dtype != metadata.input_dtype or image.ndim != 4 or image.shape[:2] != (1, metadata.channels):
        raise InputError(f"the network takes 1×{metadata.channels}×H×W {metadata.input_dtype}, "
                         f"got {'×'.join(map(str, image.shape))} {image.dtype}")
    height, width = image.shape[2:]
    if metadata.height and (height, width) != fixed:
        raise InputError(f"the network takes {fixed[1]}×{fixed[0]} only, got {width}×{height}: resize the images, or "
                         "export it with dynamic size")
    if not height or not width or height % multiple or width % multiple:
        raise InputError(f"the network takes widths and heights that are multiples of {multiple}, got {width}×{height}")
