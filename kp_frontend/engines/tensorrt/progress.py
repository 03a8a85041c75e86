"""How far TensorRT is with building, told as one number."""

from __future__ import annotations

import threading
from typing import Any

from kp_frontend.progress import Progress

TOTAL = 1000


class Phases:
    """TensorRT's phases, each a step of another, as one share of the whole that never falls.

    progress: told `TOTAL`'s share, when it grows.  Safe to call from several threads, as TensorRT does.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, list] = {}  # name → parent's name, steps, steps done
        self._told, self._lock = 0, threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, within a step of `parent`."""
        with self._lock:
            self._phases[name] = [parent, max(steps, 1), 0]

    def step(self, name: str, step: int) -> None:
        """That step, counted from 0, is done."""
        with self._lock:
            if name in self._phases:
                self._phases[name][2] = step + 1
            self._tell()

    def finish(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self) -> None:
        roots = [name for name, (parent, _, _) in self._phases.items() if parent is None]
        share = int(TOTAL * max((self._share(name) for name in roots), default=0.0))
        if share > self._told:
            self._told = share
            self._progress(share, TOTAL)

    def _share(self, name: str) -> float:
        _, steps, done = self._phases[name]
        parts = [self._share(other) for other, (parent, _, _) in self._phases.items() if parent == name]
        return min((done + max(parts, default=0.0)) / steps, 1.0)


def monitor(trt: Any, progress: Progress) -> Any:
    """What TensorRT tells of its phases, for ``IBuilderConfig.progress_monitor``; None where it tells nothing (8.5)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None
    phases = Phases(progress)

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
