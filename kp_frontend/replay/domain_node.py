"""A node of this process that talks to a node in another."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor

from kp_frontend.errors import InputError

_READY_TIMEOUT = 60.0
_SETTLE = 0.5
Self = TypeVar("Self", bound="DomainNode")


class DomainNode(ABC):
    """A context manager: inside, `node` is on a DDS domain, and a thread of its own calls its callbacks."""

    def __init__(self, name: str, domain: int) -> None:
        self._name, self._domain = name, domain

    @abstractmethod
    def connect(self) -> None:
        """Make the publishers and subscriptions of `node`; called once, before the first callback."""

    def __enter__(self: Self) -> Self:
        self._context = Context()
        rclpy.init(context=self._context, domain_id=self._domain)
        self.node = rclpy.create_node(self._name, context=self._context, start_parameter_services=False)
        self.connect()
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, name=self._name, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(timeout_sec=5)
        self._thread.join(5)
        self.node.destroy_node()
        self._context.try_shutdown()

    def wait_until(self, found: Callable[[], bool], check: Callable[[], None]) -> None:
        """Return when the other node is `found`; `check` raises where that will never be.

        Raises InputError after a minute.
        """
        end = time.monotonic() + _READY_TIMEOUT
        while not found():
            check()
            if time.monotonic() > end:
                raise InputError(f"the node did not start within {_READY_TIMEOUT:g} s")
            time.sleep(0.02)
        time.sleep(_SETTLE)  # the node must have found us as well
