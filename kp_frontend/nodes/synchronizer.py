"""Puts the depth or second image to the image it belongs to, by stamp."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

_FIRST_TOLERANCE = 1_000_000_000 // 60
_BUFFERED = 30


class StampSynchronizer:
    """Companions of each message of a main stream: the nearest by stamp within a tolerance.

    emit: called with (main message, {companion name: message or None}), in the order of the main stream.
    tolerance: nanoseconds, or None for half the median period of the main stream.
    waiting: so many newer main messages may come before one goes out without its companion.
    """

    def __init__(
        self, companions: Iterable[str], emit: Callable[[Any, dict[str, Any]], None],
        tolerance: int | None = None, waiting: int = 2,
    ) -> None:
        self._emit = emit
        self._tolerance = tolerance
        self._waiting = waiting
        self._mains: deque[tuple[int, Any]] = deque()
        self._others: dict[str, deque[tuple[int, Any]]] = {name: deque(maxlen=_BUFFERED) for name in companions}
        self._periods: deque[int] = deque(maxlen=15)
        self._last: int | None = None

    @property
    def tolerance(self) -> int:
        """Nanoseconds, now."""
        if self._tolerance is not None:
            return self._tolerance
        return int(median(self._periods)) // 2 if self._periods else _FIRST_TOLERANCE

    def add_main(self, stamp: int, message: Any) -> None:
        """The next message of the main stream; a stamp that jumps back forgets what lies after it."""
        if self._last is not None and stamp > self._last:
            self._periods.append(stamp - self._last)
        elif self._last is not None and stamp < self._last:
            self._mains.clear()
            for name, kept in self._others.items():
                near = [entry for entry in kept if entry[0] <= stamp + self.tolerance]
                self._others[name] = deque(near, maxlen=_BUFFERED)
        self._last = stamp
        self._mains.append((stamp, message))
        self._emit_ready()

    def add(self, name: str, stamp: int, message: Any) -> None:
        """The next message of the companion `name`."""
        kept = self._others[name]
        while kept and kept[-1][0] > stamp:
            kept.pop()
        kept.append((stamp, message))
        self._emit_ready()

    def _emit_ready(self) -> None:
        while self._mains:
            stamp, message = self._mains[0]
            # Companions come in order: one at or after the stamp settles which is the nearest.
            settled = all(kept and kept[-1][0] >= stamp for kept in self._others.values())
            if not settled and len(self._mains) <= self._waiting:
                return
            self._mains.popleft()
            self._emit(message, {name: self._nearest(kept, stamp) for name, kept in self._others.items()})

    def _nearest(self, kept: deque[tuple[int, Any]], stamp: int) -> Any:
        near = min(kept, key=lambda entry: abs(entry[0] - stamp), default=None)
        while kept and kept[0][0] < stamp - self.tolerance:
            kept.popleft()
        return near[1] if near is not None and abs(near[0] - stamp) <= self.tolerance else None
