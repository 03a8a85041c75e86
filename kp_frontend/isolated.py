"""A function in a process of its own, so that its memory and processor time are its own and end with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from subprocess import DEVNULL, Popen
from threading import Event
from typing import Any

import kp_frontend
from kp_frontend.errors import InputError
from kp_frontend.progress import Progress

_LOOKS = 0.2  # seconds between two looks at whether to stop


class Ended(RuntimeError):
    """The process ended without an answer, as where the system killed it for its memory; `code` as of Popen."""

    def __init__(self, what: str, code: int) -> None:
        super().__init__(f"the process that ran {what} ended with exit code {code}")
        self.code = code


def call_isolated(
    function: Callable[..., Any], *arguments: Any, progress: Progress, name: str = "", quiet: bool = True,
    stop: Event | None = None,
) -> Any:
    """``function(*arguments, progress)`` of a module, in a fresh Python; arguments and result are pickled.

    name: of what runs, for Ended (default: the function's).  quiet: what it prints is not shown; what it says to
    stderr always is.  stop: ends the process when it is set.
    Raises what the function raises of InputError and MemoryError, and Ended.
    """
    ours, child = start(__name__, stdout=DEVNULL if quiet else None)
    try:
        ours.send((function, arguments))
        while True:
            while stop is not None and not ours.poll(_LOOKS):
                if stop.is_set():
                    child.terminate()  # and so the pipe ends
            kind, content = ours.recv()
            if kind == "result":
                return content
            if kind == "raised":
                raise content
            progress(*content)
    except (EOFError, ConnectionError):
        raise Ended(name or function.__name__, child.wait()) from None
    finally:
        ours.close()
        child.terminate()
        child.wait()


def start(module: str, stdout: int | None = None, **environment: str) -> tuple[Connection, Popen]:
    """Our end of a pipe, and a fresh Python that runs `module` with the number of the other end for its argument.

    stdout: as of Popen.  environment: variables that it has beside ours.
    A plain child: multiprocessing would import the caller's main module again, which `ros2 run` does not survive.
    """
    ours, theirs = Pipe()
    paths = os.pathsep.join(filter(None, [str(Path(kp_frontend.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    try:
        child = Popen([sys.executable, "-m", module, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=stdout,
                      env={**os.environ, "PYTHONPATH": paths, **environment})
    finally:
        theirs.close()
    return ours, child


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
