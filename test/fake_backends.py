"""Backends for tests of the choice among them: modules with `load`, run by ONNX Runtime and changed at will."""

from __future__ import annotations

import sys
import types

import numpy as np

from kp_frontend.engines import BACKENDS, EngineLost, Unavailable
from kp_frontend.engines import onnxruntime as cpu


class FakeEngine:
    """ONNX Runtime under another name.

    change: applied to the outputs, by name.  runs: until it is lost, None = for ever.
    """

    concurrent = False

    def __init__(self, request, change=lambda outputs: outputs, runs=None):
        self._engine, self._change, self.left = cpu.load(request), change, runs
        self.backend, self.metadata, self.outputs = "fake (GPU)", self._engine.metadata, self._engine.outputs

    def run(self, image, **points):
        if self.left is not None:
            if not self.left:
                raise EngineLost("the GPU vanished")
            self.left -= 1
        return self._change(self._engine.run(image, **points))


def install(monkeypatch, backend, load):
    """Let `load(request)` be what opens files with `backend`."""
    module = types.ModuleType(f"fake_{backend}")
    module.load, module.has_gpu = load, lambda: False
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, backend, module.__name__)


def refuse(reason):
    """A `load` that says why it cannot."""
    def load(request):
        raise Unavailable(reason)

    return load


def only(monkeypatch, **loads):
    """Backends as given, and ONNX Runtime; all others cannot run."""
    for backend in BACKENDS:
        if backend in loads:
            install(monkeypatch, backend, loads[backend])
        elif backend != "onnxruntime":
            install(monkeypatch, backend, refuse("not on this machine"))


def shifted(outputs):
    """Maps that are moved by three pixels, as a wrong convention of resizing would."""
    return {**outputs, "scores": np.roll(outputs["scores"], 3, axis=3)}


def negated(outputs):
    """Descriptors of the other sign."""
    return {**outputs, "descriptors": -outputs["descriptors"]}


def blank(outputs):
    """Nothing but what is no number."""
    return {name: np.full_like(values, np.nan) for name, values in outputs.items()}
