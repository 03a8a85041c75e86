"""Items that go from thread to thread, where the newest wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class NewestSlot(Generic[Item, Result]):
    """Hands items to `work`, and what that makes of them, in their order, to `then`, in threads of its own.

    One item waits until there is a thread for it; a newer one takes its place, and the older goes to `dropped`.
    threads: items in work at a time.  at_once: of these in `work`; `then` has one at a time.  `then` is not called for
    a None.  All are called without a lock held and must not raise; `dropped` runs in the thread that puts.
    """

    def __init__(
        self, work: Callable[[Item], Result | None], dropped: Callable[[Item], None],
        then: Callable[[Result], None] = lambda result: None, threads: int = 1, at_once: int = 1,
    ) -> None:
        self._work, self._dropped, self._then = work, dropped, then
        self._pending: list[Item] = []  # one at most
        self._taken = self._ended = 0
        self._free, self._closed = at_once, False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, name="NewestSlot", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, item: Item) -> None:
        """Make `item` the pending one."""
        with self._changed:
            replaced, self._pending = self._pending, [item]
            self._changed.notify_all()
        for old in replaced:
            self._dropped(old)

    def close(self, timeout: float = 5.0) -> None:
        """Stop after what is being done; what waits is left. Waits up to `timeout` seconds for each thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._pending and self._free))
                if self._closed:
                    return
                item, number = self._pending.pop(), self._taken
                self._taken, self._free = self._taken + 1, self._free - 1
            result = self._work(item)
            with self._changed:
                self._free += 1
                self._changed.notify_all()
                while not self._closed and self._ended < number:
                    self._changed.wait()
                if self._closed:
                    return
            if result is not None:
                self._then(result)
            with self._changed:
                self._ended += 1
                self._changed.notify_all()
