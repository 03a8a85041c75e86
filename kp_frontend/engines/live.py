"""An engine that outlives what runs it: falls back to the CPU where the GPU is lost, and takes a better one later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kp_frontend.engines.base import Engine, EngineLost, Request, check_input
from kp_frontend.engines.choice import CPU_BACKENDS, Choice, choose, on_cpu
from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata

Chosen = tuple[Engine, Choice]
_LOG = logging.getLogger(__name__)


class LiveEngine:
    """An engine whose inner one can be replaced between two runs; see `engines.Engine`.

    request: what it was opened with.  name: of the model file.
    choice: what runs, and why.  fallbacks: how often an engine was lost.
    changed: called after each change of `choice`, from the thread that made it.
    """

    def __init__(self, request: Request, chosen: Chosen) -> None:
        self.request, self.name, self.fallbacks = request, request.path.name, 0
        self.changed: Callable[[LiveEngine], None] = lambda engine: None
        # One attribute, so that a run sees an engine with its choice, whole, without a lock.
        self._chosen = chosen
        self._lock = threading.Lock()
        self._ran = threading.local()

    @property
    def backend(self) -> str:
        """What runs now."""
        return self._chosen[1].backend

    @property
    def choice(self) -> Choice:
        """What runs now, and why."""
        return self._chosen[1]

    @property
    def metadata(self) -> ModelMetadata:
        return self._chosen[0].metadata

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._chosen[0].outputs

    @property
    def concurrent(self) -> bool:
        return self._chosen[0].concurrent

    def takes(self, height: int, width: int) -> bool:
        """Whether what runs now runs images of this size; a TensorRT engine runs those that it was built for."""
        sizes = getattr(self._chosen[0], "sizes", None)
        return sizes is None or sizes.hold(self.metadata.padded(height, width))

    def facts(self) -> dict[str, object]:
        """What diagnostics say of it, by key."""
        choice = self.choice
        return {
            "backend": choice.backend, "engine_reason": choice.reason,
            "engine_agreement": str(choice.agreement or "not compared"), "engine_fallbacks": self.fallbacks,
        }

    def run(self, image: np.ndarray, **points: np.ndarray) -> dict[str, np.ndarray]:
        """See `engines.Engine.run`; raises InputError for an image that the network does not take."""
        check_input(image, self.metadata)
        engine = self._chosen[0]
        try:
            outputs = engine.run(image, **points)
        except EngineLost as error:
            engine = self._fall_back(engine, error, image.shape[2:])
            outputs = engine.run(image, **points)
        self._ran.engine = engine  # the arrays are its own: it must not go before the next run, even if it is replaced
        return outputs

    def replace(self, better: LiveEngine) -> None:
        """From the next run on, run what `better` runs; safe from any thread.

        Raises InputError unless it is the same model.
        """
        if (better.metadata, better.outputs) != (self.metadata, self.outputs):
            raise InputError(f"{self.name} runs; {better.name} is another model and cannot take its place")
        with self._lock:
            self._chosen = better._chosen
        _LOG.info("%s: %s", self.name, self.choice)
        self.changed(self)

    def _fall_back(self, lost: Engine, error: EngineLost, size: tuple[int, ...]) -> Engine:
        """What runs instead of `lost`, for images of height and width `size`."""
        with self._lock:
            if self._chosen[0] is lost:
                engine, choice = self._spare(size)
                self._chosen, self.fallbacks = (engine, choice), self.fallbacks + 1
                _LOG.error("%s: %s is lost (%s); %s runs it now", self.name, lost.backend, error, choice.backend)
        self.changed(self)
        return self._chosen[0]

    def _spare(self, size: tuple[int, ...]) -> Chosen:
        """What runs the model on the CPU for images of height and width `size`; InputError where nothing does."""
        request = on_cpu(self.request, self.metadata)
        if request is None:
            raise InputError(f"{self.name} runs no more; for the CPU to go on, put the .onnx that it was built from "
                             "beside it, under the same name")
        return choose(replace(request, height=size[0], width=size[1]), CPU_BACKENDS)


def engine_of(user: object) -> LiveEngine | None:
    """The engine behind an extractor, or behind a tracker's extractor; None where no network runs."""
    engine = getattr(getattr(user, "extractor", user), "engine", None)
    return engine if isinstance(engine, LiveEngine) else None


def backend_of(user: object) -> str:
    """What computes the features of an extractor or tracker: ``opencv`` where no network runs."""
    engine = engine_of(user)
    return engine.backend if engine is not None else "opencv"
