"""Things that only one thread at a time may use: each thread gets its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class PerThread(Generic[Item]):
    """What `make` makes, once for each thread that asks for it."""

    def __init__(self, make: Callable[[], Item]) -> None:
        self._make, self._own = make, threading.local()

    def get(self) -> Item:
        """The calling thread's own."""
        if not hasattr(self._own, "item"):
            self._own.item = self._make()
        return self._own.item
