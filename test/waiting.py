"""Waiting for what another thread does."""

from __future__ import annotations

import time

WAIT = 20
"""Seconds."""


def until(condition):
    """Return when `condition` holds; the test fails after WAIT seconds."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)
