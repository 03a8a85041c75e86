"""One call in a process of its own, so that its peak of memory is its own and ends with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import kp_training
from kp_frontend.errors import InputError

Progress = Callable[[int, int], None]


class Ended(RuntimeError):
    """The process ended without an answer, as where the system killed it for its memory; `code` as of Popen."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"the process that ran {what} ended with exit code {code}")
        self.code = code


def call_isolated(function: Callable[..., Any], *arguments: Any, progress: Progress) -> Any:
    """``function(*arguments, progress)`` of a module, in a fresh Python; arguments and result are pickled.

    What it prints is not shown, but what it says to stderr is.
    Raises what the function raises of InputError and MemoryError, and Ended.
    """
    ours, theirs = Pipe()
    # multiprocessing would import the caller's main module again; a plain child needs nothing of it.
    paths = [str(Path(kp_training.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    child = Popen(
        [sys.executable, "-m", "kp_training.isolated", str(theirs.fileno())], pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}, stdout=DEVNULL,
    )
    theirs.close()
    try:
        ours.send((function, arguments))
        while True:
            kind, content = ours.recv()
            if kind == "result":
                return content
            if kind == "raised":
                raise content
            progress(*content)
    except (EOFError, ConnectionError):
        raise Ended(function.__name__, child.wait()) from None
    finally:
        ours.close()
        child.terminate()
        child.wait()


def _serve(connection: Connection) -> None:
    """The child of `call_isolated`."""
    function, arguments = connection.recv()
    try:
        connection.send(("result", function(*arguments, lambda *done: connection.send(("progress", done)))))
    except (InputError, MemoryError) as error:
        connection.send(("raised", error))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole process group; the parent says so
        _serve(Connection(int(sys.argv[1])))
