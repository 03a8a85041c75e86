"""What a node says of itself: on /diagnostics, once a second, and of every frame in a file where one is asked for."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import TextIO

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from kp_frontend.errors import InputError
from kp_frontend.messages import diagnostics_to_message

PERIOD = 1.0
REPEAT = 5.0
_NAMED_DROPS = 8
_SILENCE = 2.0


class Diagnostics:
    """Counts and timings of one node over its last `window` frames; safe to call from several threads.

    facts: what stays the same (model, backend).
    frame_log: file that gets one JSON object a line for each frame, "" = none.
    """

    def __init__(self, node: Node, window: int, facts: Mapping[str, object], frame_log: str = "") -> None:
        self._node = node
        self._facts = dict(facts)
        self._lock = threading.Lock()
        self._times: deque[float] = deque(maxlen=window)
        self._stages: dict[str, deque[float]] = {}
        self._window = window
        self._counts: Counter[str] = Counter()
        self._values: dict[str, object] = {}
        self._drops: deque[int] = deque(maxlen=_NAMED_DROPS)
        self._said: dict[str, float] = {}
        self._error, self._error_time = "", -np.inf
        self._log = _open_log(frame_log)
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Wall time: a paused /clock must not silence what would explain it.
        node.create_timer(PERIOD, self._publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def fact(self, **facts: object) -> None:
        """Add or change a fact."""
        with self._lock:
            self._facts.update(facts)

    def frame(self, stamp: int, timings: Mapping[str, float], **values: object) -> None:
        """The frame of `stamp` (ns) went through: milliseconds by stage, and what was found in it."""
        with self._lock:
            self._times.append(time.monotonic())
            self._counts["processed"] += 1
            self._values.update(values)
            for stage, milliseconds in timings.items():
                self._stages.setdefault(stage, deque(maxlen=self._window)).append(milliseconds)
        self._write({"stamp": stamp, "timings": dict(timings), **values})

    @contextlib.contextmanager
    def survived(self, stamp: int) -> Iterator[None]:
        """The frame of `stamp` (ns) must not end the node, whatever a library makes of it: an error is said."""
        try:
            yield
        except InputError as error:
            self.error(str(error), stamp=stamp)
        except Exception as error:
            if not self._node.context.ok():
                return
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {place.filename}:{place.lineno}"
            text = f"frame not processed: {where}: {str(error).partition(chr(10))[0][:200]}"
            self.error(text, where, stamp)

    def close(self) -> None:
        """Complete the file."""
        with self._lock:
            log, self._log = self._log, None
        if log is not None:
            log.close()

    def _write(self, record: Mapping[str, object]) -> None:
        """One line of the file. Where it takes no more (a full disk), that is said, and the node goes on without."""
        with self._lock:
            log = self._log
            if log is None:
                return
            try:
                print(json.dumps(record), file=log)
                return
            except OSError as error:
                self._log, reason = None, error.strerror
        with contextlib.suppress(OSError):  # it writes what is left once more, for the same reason in vain
            log.close()
        self.error(f"frame_log {log.name}: {reason}; no more frames go there, make room and start the node again")

    def count(self, what: str) -> None:
        """One more `what` (received, repeated, idle …)."""
        with self._lock:
            self._counts[what] += 1

    def drop(self, stamp: int) -> None:
        """The frame of `stamp` (ns) gave way to a newer one."""
        with self._lock:
            self._counts["dropped"] += 1
            self._drops.append(stamp)

    def error(self, text: str, kind: str | None = None, stamp: int | None = None) -> None:
        """A frame or message could not be used. Logged, but one `kind` (default: text) once in `REPEAT` seconds."""
        with self._lock:
            self._counts["errors"] += 1
            self._error, self._error_time = text, time.monotonic()
        if stamp is not None:
            self._write({"stamp": stamp, "error": text})
        if self._is_news(kind or text):
            self._node.get_logger().error(text)

    def warning(self, text: str) -> None:
        """Something is missing that not all need. Logged as rarely as an error, not counted."""
        if self._is_news(text):
            self._node.get_logger().warning(text)

    def _is_news(self, kind: str) -> bool:
        now = time.monotonic()
        with self._lock:
            self._said = {said: then for said, then in self._said.items() if now - then < REPEAT}
            return self._said.setdefault(kind, now) == now

    def values(self) -> dict[str, object]:
        """All that is published, by key."""
        with self._lock:
            rate = (len(self._times) - 1) / max(self._times[-1] - self._times[0], 1e-9) if len(self._times) > 1 else 0.0
            published: dict[str, object] = {**self._facts, "rate_hz": f"{rate:.1f}"}
            for key in ("received", "processed", "dropped", "repeated", "idle", "errors"):
                published[key] = self._counts[key]
            published["dropped_stamps"] = " ".join(f"{stamp * 1e-9:.9f}" for stamp in self._drops)
            published.update(self._values)
            for stage, times in self._stages.items():
                for percent, value in zip((50, 99), np.percentile(times, (50, 99))):
                    published[f"{stage}_ms_p{percent}"] = f"{value:.3f}"
            published["last_error"] = self._error
        return published

    def _publish(self) -> None:
        values = self.values()
        now = time.monotonic()
        if now - self._error_time < 5 * PERIOD:
            level, summary = DiagnosticStatus.ERROR, self._error
        elif not self._times or now - self._times[-1] > _SILENCE:
            level, summary = DiagnosticStatus.WARN, "no frame processed"
        else:
            level, summary = DiagnosticStatus.OK, f"{values['rate_hz']} frames/s"
        stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name()
        self._publisher.publish(
            diagnostics_to_message(name, str(self._facts.get("model", "")), level, summary, values, stamp)
        )


def _open_log(path: str) -> TextIO | None:
    try:
        return open(path, "w", encoding="utf-8", buffering=1) if path else None
    except OSError as error:
        raise InputError(f"frame_log: {error}") from error
