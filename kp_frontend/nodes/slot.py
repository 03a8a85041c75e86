"""Items that go from thread to thread: where the newest wins, and where none is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class _Worker(Generic[Item]):
    """Calls `work`, without a lock held, in a thread of its own with what is put before it, one item at a time."""

    def __init__(self, work: Callable[[Item], None]) -> None:
        self._work = work
        self._pending: list[Item] = []  # one at most
        self._busy = self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop after the item in work; the pending one is left. Waits up to `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._pending)
                if self._closed:
                    return
                item, self._busy = self._pending.pop(), True
            self._work(item)


class NewestSlot(_Worker[Item]):
    """Hands items to `work` in a thread of its own, one at a time.

    While `work` is busy one item waits; a newer one takes its place, and the older goes to `dropped`.
    Both are called without a lock held; `dropped` runs in the thread that puts.
    """

    def __init__(self, work: Callable[[Item], None], dropped: Callable[[Item], None]) -> None:
        self._dropped = dropped
        super().__init__(work)

    def put(self, item: Item) -> None:
        """Make `item` the pending one."""
        with self._changed:
            replaced, self._pending = self._pending, [item]
            self._changed.notify_all()
        for old in replaced:
            self._dropped(old)


class Handover(_Worker[Item]):
    """Hands items to `work` in a thread of its own, one at a time, in order, and none is lost.

    Who puts one waits until the item before is done, so nothing grows old in a queue.
    """

    def put(self, item: Item) -> None:
        """Start work on `item` as soon as that on the one before has ended; after `close` it is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not (self._pending or self._busy))
            self._pending = [item]
            self._changed.notify_all()
